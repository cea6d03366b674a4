// Input gradient of a depthwise convolution with any stride: a thread gathers one element from the results that saw it,
// so that no two threads write to one place. Not yet verified on a GPU.
//
// `dy`       (batch, channels * fan, *out), C order
// `weights`  (channels * fan, taps)
// `dx`       (batch, channels, *size), overwritten
#include "planes.cuh"

extern "C" __global__ void __launch_bounds__(THREADS)
    depthwise_input_grad(const Element* __restrict__ dy, const Element* __restrict__ weights, Element* __restrict__ dx,
                         Window window, Steps steps, Planes planes) {
  const Index plane_in = product(window.size), plane_out = product(window.out), taps = product(window.kernel);
  const Index number = Index(blockIdx.x) * THREADS + Index(threadIdx.x);
  if (number >= planes.batch * planes.channels * plane_in) return;
  Index at[AXES];
  const Index plane = decode(number, window.size, at);
  const Index channel = plane % planes.channels;
  const Element* plane_dy = dy + plane * planes.fan * plane_out;
  const Element* row_weights = weights + channel * planes.fan * taps;
  Sum sum{};
  for (Index feed = 0; feed < planes.fan; feed++) {
    for_each_seeing(window, steps, at, [&](Index tap, Index out) {
      sum = multiply_add(sum, widen(row_weights[feed * taps + tap]),
                         widen(plane_dy[feed * plane_out + out]));
    });
  }
  dx[number] = Narrow<Element>::from(sum);
}
