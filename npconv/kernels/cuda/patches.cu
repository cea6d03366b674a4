// The columns of an image (im2col) and their adjoint (col2im), one thread an element that is written. Not yet verified
// on a GPU.
//
// `columns`  (planes, taps, positions), C order; planes are batch and channels
// `image`    (planes, *size)
#include "window.cuh"

// Writes all of `columns`; zeros where a tap lies in the padding.
extern "C" __global__ void __launch_bounds__(THREADS)
    unfold(const Element* __restrict__ image, Element* __restrict__ columns, Window window, Index planes) {
  const Index positions = product(window.out), taps = product(window.kernel);
  const Index number = Index(blockIdx.x) * THREADS + Index(threadIdx.x);
  if (number >= planes * taps * positions) return;
  Index out[AXES], tap[AXES];
  const Index plane = decode(decode(number, window.out, out), window.kernel, tap);
  bool inside = true;
  Index element = 0;
#pragma unroll
  for (int axis = 0; axis < AXES; axis++) {
    const Index at = out[axis] * window.stride[axis] + tap[axis] * window.dilation[axis] - window.low[axis];
    inside = inside && at >= 0 && at < window.size[axis];
    element = element * window.size[axis] + at;
  }
  columns[number] = inside ? image[plane * product(window.size) + element] : Element{};
}

// Writes all of `image`: every element gathers, in order of taps, so that no two threads write to one place.
extern "C" __global__ void __launch_bounds__(THREADS)
    fold(const Element* __restrict__ columns, Element* __restrict__ image, Window window, Steps steps, Index planes) {
  const Index positions = product(window.out), taps = product(window.kernel);
  const Index number = Index(blockIdx.x) * THREADS + Index(threadIdx.x);
  if (number >= planes * product(window.size)) return;
  Index at[AXES];
  const Element* own = columns + decode(number, window.size, at) * taps * positions;
  Sum sum{};
  for_each_seeing(window, steps, at, [&](Index tap, Index out) { sum = plus(sum, widen(own[tap * positions + out])); });
  image[number] = Narrow<Element>::from(sum);
}
