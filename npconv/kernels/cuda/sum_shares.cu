// Adds the shares of a weight gradient, in order: the same bits in every run. Not yet verified on a GPU.
//
// `parts`   (shares, count) of Sum
// `result`  (count), overwritten
#include "scalars.cuh"

extern "C" __global__ void __launch_bounds__(THREADS)
    sum_shares(const Sum* __restrict__ parts, Element* __restrict__ result, Index count, int shares) {
  const Index i = Index(blockIdx.x) * THREADS + Index(threadIdx.x);
  if (i >= count) return;
  Sum sum = parts[i];
  for (int share = 1; share < shares; share++) sum = plus(sum, parts[share * count + i]);
  result[i] = Narrow<Element>::from(sum);
}
