// What happens to a sum on its way out: bias, then activation. Codes are those of npconv.kernels.cuda.launch.
#ifndef NPCONV_EPILOGUE_CUH
#define NPCONV_EPILOGUE_CUH

#include "scalars.cuh"

enum Activation { IDENTITY, RELU, RELU6, HARDSWISH };

// NaN passes through every activation.
template <class T>
__device__ __forceinline__ T activated(T value, int activation) {
  if (activation == RELU || activation == RELU6) value = value <= T(0) ? T(0) : value;
  if (activation == RELU6) value = value >= T(6) ? T(6) : value;
  if (activation == HARDSWISH) {
    if (value <= T(-3)) return T(0);
    if (value < T(3)) return value * ((value + T(3)) / T(6));
  }
  return value;
}
// Numbers without an order have none; the host asks for none.
template <class Real>
__device__ __forceinline__ complex<Real> activated(complex<Real> value, int) {
  return value;
}

#endif
