// Depthwise convolution of channels-last arrays, one result channel an image channel, and both gradients. Not yet
// verified on a GPU.
//
// A thread works on LANES neighbouring channels, which it reads and writes at once, and neighbouring threads on the next
// ones, so that all accesses are to whole stretches of memory. What several results see comes from the caches.
//
// `image`, `dx`   (batch, *size, channels), C order
// `result`, `dy`  (batch, *out, channels)
// `weights`       (taps, channels); `dw` (shares, taps, channels), of Element, or of Sum where PARTIAL
// `bias`          (channels) or null
//
// LANES > 1: the number of channels and all addresses in elements are multiples of it.
#include "epilogue.cuh"
#include "window.cuh"

#if PARTIAL
typedef Sum Partial;
#else
typedef Element Partial;
#endif

// sums += a * b, channel by channel.
__device__ __forceinline__ void add_products(Sum (&sums)[LANES], const Element* a, const Element* b) {
  const Vector<Element, LANES> left = load_vector<Element, LANES>(a), right = load_vector<Element, LANES>(b);
#pragma unroll
  for (int i = 0; i < LANES; i++) sums[i] = multiply_add(sums[i], widen(left.at[i]), widen(right.at[i]));
}

// Writes all of `result`.
extern "C" __global__ void __launch_bounds__(THREADS)
    depthwise_last(const Element* __restrict__ image, const Element* __restrict__ weights,
                   const Element* __restrict__ bias, Element* __restrict__ result, Window window, Index batch,
                   Index channels, int activation) {
  const Index number = Index(blockIdx.x) * THREADS + Index(threadIdx.x), parts = channels / LANES;
  Index out[AXES];
  const Index n = decode(number / parts, window.out, out), channel = number % parts * LANES;
  if (n >= batch) return;
  const Element* own = image + n * product(window.size) * channels + channel;
  Sum sums[LANES] = {};
  for_each_seen(window, out, [&](Index tap, Index element) {
    add_products(sums, own + element * channels, weights + tap * channels + channel);
  });
  Vector<Element, LANES> part;
#pragma unroll
  for (int i = 0; i < LANES; i++) {
    const Sum offset = bias ? widen(bias[channel + i]) : Sum{};
    part.at[i] = Narrow<Element>::from(activated(plus(sums[i], offset), activation));
  }
  store_vector<Element, LANES>(result + number * LANES, part);
}

// Writes all of `dx`: every element gathers from the results that saw it, in order of taps.
extern "C" __global__ void __launch_bounds__(THREADS)
    depthwise_last_input_grad(const Element* __restrict__ dy, const Element* __restrict__ weights,
                              Element* __restrict__ dx, Window window, Steps steps, Index batch, Index channels) {
  const Index number = Index(blockIdx.x) * THREADS + Index(threadIdx.x), parts = channels / LANES;
  Index at[AXES];
  const Index n = decode(number / parts, window.size, at), channel = number % parts * LANES;
  if (n >= batch) return;
  const Element* own = dy + n * product(window.out) * channels + channel;
  Sum sums[LANES] = {};
  for_each_seeing(window, steps, at, [&](Index tap, Index out) {
    add_products(sums, own + out * channels, weights + tap * channels + channel);
  });
  Vector<Element, LANES> part;
#pragma unroll
  for (int i = 0; i < LANES; i++) part.at[i] = Narrow<Element>::from(sums[i]);
  store_vector<Element, LANES>(dx + number * LANES, part);
}

// A thread sums one tap over a share of all results; `sum_shares` adds the shares in order: the same bits in every run.
extern "C" __global__ void __launch_bounds__(THREADS)
    depthwise_last_weight_grad(const Element* __restrict__ image, const Element* __restrict__ dy,
                               Partial* __restrict__ dw, Window window, Index batch, Index channels, Index shares) {
  const Index number = Index(blockIdx.x) * THREADS + Index(threadIdx.x), parts = channels / LANES;
  Index tap[AXES];
  const Index share = decode(number / parts, window.kernel, tap), channel = number % parts * LANES;
  if (share >= shares) return;
  const Index places = batch * product(window.out), most = (places + shares - 1) / shares;
  const Index stop = (share + 1) * most < places ? (share + 1) * most : places;
  Sum sums[LANES] = {};
  for (Index place = share * most; place < stop; place++) {
    Index out[AXES], element = 0;
    const Index n = decode(place, window.out, out);
    bool inside = true;
#pragma unroll
    for (int axis = 0; axis < AXES; axis++) {
      const Index at = out[axis] * window.stride[axis] + tap[axis] * window.dilation[axis] - window.low[axis];
      inside = inside && at >= 0 && at < window.size[axis];
      element = element * window.size[axis] + at;
    }
    if (!inside) continue;
    add_products(sums, image + (n * product(window.size) + element) * channels + channel,
                 dy + place * channels + channel);
  }
#pragma unroll
  for (int i = 0; i < LANES; i++) dw[number * LANES + i] = Narrow<Partial>::from(sums[i]);
}
