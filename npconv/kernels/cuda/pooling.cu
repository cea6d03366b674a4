// Max pooling and its gradient, one thread an element that is written. Not yet verified on a GPU.
//
// `image`, `dx`   (planes, *size), C order; planes are batch and channels
// `result`, `dy`  (planes, *out)
// `winner`        (planes, *out): the tap whose element won, -1 where a window saw none
#include "window.cuh"

template <class T>
__device__ __forceinline__ bool exceeds(T a, T b) {
  return a > b || a != a;
}
__device__ __forceinline__ bool exceeds(float16 a, float16 b) { return exceeds(widen(a), widen(b)); }
__device__ __forceinline__ bool exceeds(bfloat16 a, bfloat16 b) { return exceeds(widen(a), widen(b)); }
// Ordered by the real, then the imaginary part.
template <class Real>
__device__ __forceinline__ bool exceeds(complex<Real> a, complex<Real> b) {
  return a.re > b.re || (a.re == b.re && a.im > b.im) || a.re != a.re || a.im != a.im;
}

// The first of the largest elements wins, or the first NaN. Where a window sees no element `result` and `winner` stay
// as they are.
extern "C" __global__ void __launch_bounds__(THREADS)
    max_pool(const Element* __restrict__ image, Element* __restrict__ result, int64* __restrict__ winner, Window window,
             Index planes) {
  const Index number = Index(blockIdx.x) * THREADS + Index(threadIdx.x);
  if (number >= planes * product(window.out)) return;
  Index out[AXES];
  const Element* own = image + decode(number, window.out, out) * product(window.size);
  Element best{};
  int64 chosen = -1;
  for_each_seen(window, out, [&](Index tap, Index element) {
    const Element value = own[element];
    // A NaN exceeds everything, itself too.
    if (chosen < 0 || (exceeds(value, best) && !exceeds(best, best))) {
      best = value;
      chosen = tap;
    }
  });
  if (chosen < 0) return;
  result[number] = best;
  winner[number] = chosen;
}

// Writes all of `dx`: every element gathers from the windows that it won.
extern "C" __global__ void __launch_bounds__(THREADS)
    max_pool_grad(const Element* __restrict__ dy, const int64* __restrict__ winner, Element* __restrict__ dx,
                  Window window, Steps steps, Index planes) {
  const Index number = Index(blockIdx.x) * THREADS + Index(threadIdx.x);
  if (number >= planes * product(window.size)) return;
  Index at[AXES];
  const Index first = decode(number, window.size, at) * product(window.out);
  Sum sum{};
  for_each_seeing(window, steps, at, [&](Index tap, Index out) {
    if (winner[first + out] == tap) sum = plus(sum, widen(dy[first + out]));
  });
  dx[number] = Narrow<Element>::from(sum);
}
