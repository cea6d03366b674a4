// How a kernel slides over AXES spatial axes: the geometry that every kernel is handed by value.
#ifndef NPCONV_WINDOW_CUH
#define NPCONV_WINDOW_CUH

#include "scalars.cuh"

// Per axis: sizes of the image, the kernel and the result, and what lies between them. Output `p` and tap `k` meet at
// element `p * stride + k * dilation - low`, which may lie outside the image.
struct Window {
  Index size[AXES], kernel[AXES], stride[AXES], dilation[AXES], low[AXES], out[AXES];
};

// The coordinates of a row-major number; returns what is left of it beyond them.
__device__ __forceinline__ Index decode(Index number, const Index (&extent)[AXES], Index (&at)[AXES]) {
#pragma unroll
  for (int axis = AXES - 1; axis >= 0; axis--) {
    at[axis] = number % extent[axis];
    number /= extent[axis];
  }
  return number;
}

__device__ __forceinline__ Index product(const Index (&extent)[AXES]) {
  Index all = 1;
#pragma unroll
  for (int axis = 0; axis < AXES; axis++) all *= extent[axis];
  return all;
}

// Counts `at` up in row-major order below `extent`, from `first` in steps of `step`; false when it starts again.
__device__ __forceinline__ bool advance(Index (&at)[AXES], const Index (&first)[AXES], const Index (&step)[AXES],
                                        const Index (&extent)[AXES]) {
#pragma unroll
  for (int axis = AXES - 1; axis >= 0; axis--) {
    at[axis] += step[axis];
    if (at[axis] < extent[axis]) return true;
    at[axis] = first[axis];
  }
  return false;
}

// Calls `visit(tap, element)` in order of taps for every element of the image that output `out` sees; both are numbers
// in row-major order.
template <class Visit>
__device__ __forceinline__ void for_each_seen(const Window& window, const Index (&out)[AXES], Visit visit) {
  Index tap[AXES] = {}, zero[AXES] = {}, one[AXES];
#pragma unroll
  for (int axis = 0; axis < AXES; axis++) one[axis] = 1;
  Index number = 0;
  do {
    bool inside = true;
    Index element = 0;
#pragma unroll
    for (int axis = 0; axis < AXES; axis++) {
      const Index at = out[axis] * window.stride[axis] + tap[axis] * window.dilation[axis] - window.low[axis];
      inside = inside && at >= 0 && at < window.size[axis];
      element = element * window.size[axis] + at;
    }
    if (inside) visit(number, element);
    number++;
  } while (advance(tap, zero, one, window.kernel));
}

// The first of the taps under which an element meets an output along one axis. An element at `position`, counted from
// the start of the padding, meets tap k where `position - k * dilation` is a multiple of the stride; these taps lie
// `step` = stride / gcd(stride, dilation) apart. `kernel` where there are none.
__device__ __forceinline__ Index first_tap(Index position, Index stride, Index dilation, Index kernel, Index step) {
  for (Index tap = 0; tap < step && tap < kernel; tap++)
    if ((position - tap * dilation) % stride == 0) return tap;
  return kernel;
}

// Per axis, how far apart the taps lie that an element meets.
struct Steps {
  Index at[AXES];
};

// The adjoint of `for_each_seen`: calls `visit(tap, out)` in order of taps for every output that sees the image's
// element `at`.
template <class Visit>
__device__ __forceinline__ void for_each_seeing(const Window& window, const Steps& steps, const Index (&at)[AXES],
                                                Visit visit) {
  Index first[AXES], tap[AXES];
#pragma unroll
  for (int axis = 0; axis < AXES; axis++) {
    first[axis] = first_tap(at[axis] + window.low[axis], window.stride[axis], window.dilation[axis],
                            window.kernel[axis], steps.at[axis]);
    if (first[axis] >= window.kernel[axis]) return;
    tap[axis] = first[axis];
  }
  do {
    bool inside = true;
    Index number = 0, out = 0;
#pragma unroll
    for (int axis = 0; axis < AXES; axis++) {
      const Index ahead = at[axis] + window.low[axis] - tap[axis] * window.dilation[axis];
      const Index place = ahead / window.stride[axis];
      inside = inside && ahead >= 0 && place < window.out[axis];
      number = number * window.kernel[axis] + tap[axis];
      out = out * window.out[axis] + place;
    }
    if (inside) visit(number, out);
  } while (advance(tap, first, steps.at, window.kernel));
}

#endif
