// Elements and the sums that they are added up in. A kernel is compiled for one ELEMENT and one INDEX, the type of
// offsets: int where every extent fits, int64 elsewhere. Nothing here is included from the CUDA toolkit.
#ifndef NPCONV_SCALARS_CUH
#define NPCONV_SCALARS_CUH

#include "ptx.cuh"

typedef long long int64;
typedef unsigned long long uint64;
typedef INDEX Index;

struct alignas(2) float16 {
  unsigned short bits;
};

struct alignas(2) bfloat16 {
  unsigned short bits;
};

template <class Real>
struct alignas(2 * sizeof(Real)) complex {
  Real re, im;
};
typedef complex<float> complex64;
typedef complex<double> complex128;

typedef ELEMENT Element;

// What elements are summed in: float for the narrow formats; unsigned for integers, whose sums wrap.
template <class T>
struct SumOf {
  typedef T type;
};
template <>
struct SumOf<float16> {
  typedef float type;
};
template <>
struct SumOf<bfloat16> {
  typedef float type;
};
template <>
struct SumOf<int64> {
  typedef uint64 type;
};
typedef SumOf<Element>::type Sum;

template <class T>
__device__ __forceinline__ typename SumOf<T>::type widen(T value) {
  return typename SumOf<T>::type(value);
}
__device__ __forceinline__ float widen(float16 value) { return half_to_float(value.bits); }
__device__ __forceinline__ float widen(bfloat16 value) {
  return __uint_as_float(unsigned(value.bits) << 16);
}
__device__ __forceinline__ complex64 widen(complex64 value) { return value; }
__device__ __forceinline__ complex128 widen(complex128 value) { return value; }

// A sum as an element, rounded to nearest even.
template <class T>
struct Narrow {
  template <class S>
  static __device__ __forceinline__ T from(S value) {
    return T(value);
  }
};
template <>
struct Narrow<float16> {
  static __device__ __forceinline__ float16 from(float value) { return float16{float_to_half(value)}; }
};
template <>
struct Narrow<bfloat16> {
  static __device__ __forceinline__ bfloat16 from(float value) {
    const unsigned bits = __float_as_uint(value);
    // Half of the last place that is kept, less one where that place is even; a NaN stays one.
    const unsigned rounded = value == value ? bits + 0x7fff + (bits >> 16 & 1) : bits | 0x400000;
    return bfloat16{static_cast<unsigned short>(rounded >> 16)};
  }
};

// sum + a * b, in one rounding where there is an instruction for it.
__device__ __forceinline__ float multiply_add(float sum, float a, float b) { return fmaf(a, b, sum); }
__device__ __forceinline__ double multiply_add(double sum, double a, double b) { return fma(a, b, sum); }
__device__ __forceinline__ uint64 multiply_add(uint64 sum, uint64 a, uint64 b) { return a * b + sum; }
template <class Real>
__device__ __forceinline__ complex<Real> multiply_add(complex<Real> sum, complex<Real> a, complex<Real> b) {
  sum.re = multiply_add(multiply_add(sum.re, a.re, b.re), -a.im, b.im);
  sum.im = multiply_add(multiply_add(sum.im, a.re, b.im), a.im, b.re);
  return sum;
}

template <class T>
__device__ __forceinline__ T plus(T a, T b) {
  return a + b;
}
template <class Real>
__device__ __forceinline__ complex<Real> plus(complex<Real> a, complex<Real> b) {
  return complex<Real>{a.re + b.re, a.im + b.im};
}

// A value of the warp's lane that lies `lanes` away.
template <class T>
__device__ __forceinline__ T from_lane(T value, int lanes) {
  return __shfl_xor_sync(0xffffffffu, value, lanes);
}
template <class Real>
__device__ __forceinline__ complex<Real> from_lane(complex<Real> value, int lanes) {
  return complex<Real>{from_lane(value.re, lanes), from_lane(value.im, lanes)};
}

// COUNT elements that are read or written at once: at most 16 bytes, aligned to their size.
template <class T, int COUNT>
struct alignas(sizeof(T) * COUNT) Vector {
  T at[COUNT];
};

template <class T, int COUNT>
__device__ __forceinline__ Vector<T, COUNT> load_vector(const T* from) {
  return *reinterpret_cast<const Vector<T, COUNT>*>(from);
}
template <class T, int COUNT>
__device__ __forceinline__ void store_vector(T* to, const Vector<T, COUNT>& value) {
  *reinterpret_cast<Vector<T, COUNT>*>(to) = value;
}

#endif
