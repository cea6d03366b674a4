// Depthwise convolutions: which planes of the image and rows of the weights a plane of the result is made of; and how
// segments of a row are read.
#ifndef NPCONV_PLANES_CUH
#define NPCONV_PLANES_CUH

#include "window.cuh"

// Result channel c is a sum over `fan` image channels, and `spread` result channels share one of them. Forward, fan is
// 1 and spread the channel multiplier; the input gradient has them the other way round.
struct Planes {
  Index batch, channels, spread, fan;
};

// COVER elements of a row of `width`, from `start`, as sums; zero where they lie outside. WIDTH of them are read at
// once: then `width`, `start` and the row's address are multiples of WIDTH.
template <int COVER, int WIDTH>
__device__ __forceinline__ void load_segment(Sum (&segment)[COVER], const Element* row, Index start, Index width,
                                             bool exists) {
  static_assert(COVER % WIDTH == 0, "whole vectors");
#pragma unroll
  for (int i = 0; i < COVER; i += WIDTH) {
    const bool inside = exists && start + i >= 0 && start + i < width;
    Vector<Element, WIDTH> part{};
    if (inside) part = load_vector<Element, WIDTH>(row + (start + i));
#pragma unroll
    for (int j = 0; j < WIDTH; j++) segment[i + j] = inside ? widen(part.at[j]) : Sum{};
  }
}

#endif
