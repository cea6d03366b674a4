// Weight gradient of a depthwise convolution: a block sums one row of weights (a piece of KERNEL_H x KERNEL_W taps) over
// a share of all results. Not yet verified on a GPU.
//
// Each thread keeps a sum per tap in registers while it walks over strips of COLS results; the block adds its threads'
// sums in a fixed order. With several shares (PARTIAL), `result` holds their sums, which `sum_shares` adds in order: no
// atomics, the same bits in every run.
//
// `image`   (batch, channels / spread, *size), C order, LOAD elements are read at once
// `dy`      (batch, channels, *out), LOAD_DY elements are read at once
// `result`  (shares, channels, taps), overwritten; of Element, or of Sum where PARTIAL
//
// LOAD and SKEW as for `depthwise`; LOAD_DY > 1 asks for: out[-1] and dy's address are multiples of it, COLS too.
#include "planes.cuh"

constexpr int SEGMENT = (COLS - 1) * STRIDE_W + (KERNEL_W - 1) * DILATION_W + 1;
constexpr int COVER = (SKEW + SEGMENT + LOAD - 1) / LOAD * LOAD;
constexpr int TAPS = KERNEL_H * KERNEL_W;
constexpr int WARPS = THREADS / 32;

#if PARTIAL
typedef Sum Result;
#else
typedef Element Result;
#endif

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
    depthwise_weight_grad(const Element* __restrict__ image, const Element* __restrict__ dy,
                          Result* __restrict__ result, Window window, Planes planes, int shares) {
  constexpr int H = AXES - 2, W = AXES - 1;
  __shared__ Sum warps[WARPS][TAPS];
  const Index plane_in = product(window.size), plane_out = product(window.out), taps = product(window.kernel);

  Index pieces[AXES], piece[AXES];
#pragma unroll
  for (int axis = 0; axis < AXES; axis++) pieces[axis] = window.kernel[axis];
  pieces[H] /= KERNEL_H;
  pieces[W] /= KERNEL_W;
  const Index share = Index(blockIdx.x) % shares;
  const Index channel = decode(Index(blockIdx.x) / shares, pieces, piece);
  const Index top = piece[H] * KERNEL_H, left = piece[W] * KERNEL_W;

  // Strips are rows of the result, over batch and all axes but the last, cut into COLS.
  Index extent[AXES], at[AXES];
#pragma unroll
  for (int axis = 0; axis < W; axis++) extent[axis] = window.out[axis];
  extent[W] = (window.out[W] + COLS - 1) / COLS;
  const Index strips = planes.batch * product(extent);
  const Index most = (strips + shares - 1) / shares;
  const Index stop = (share + 1) * most < strips ? (share + 1) * most : strips;

  Sum sums[KERNEL_H][KERNEL_W] = {};
  for (Index strip = share * most + Index(threadIdx.x); strip < stop; strip += THREADS) {
    const Index n = decode(strip, extent, at);
    at[W] *= COLS;
    bool exists = true;
    Index lead = 0, lead_out = 0;
#pragma unroll
    for (int axis = 0; axis < H; axis++) {
      const Index place = at[axis] * window.stride[axis] + piece[axis] * window.dilation[axis] - window.low[axis];
      exists = exists && place >= 0 && place < window.size[axis];
      lead = lead * window.size[axis] + place;
      lead_out = lead_out * window.out[axis] + at[axis];
    }
    if (!exists) continue;
    const Element* lines = image + (n * (planes.channels / planes.spread) + channel / planes.spread) * plane_in +
                           lead * window.size[H] * window.size[W];
    const Element* line_dy =
        dy + (n * planes.channels + channel) * plane_out + (lead_out * window.out[H] + at[H]) * window.out[W];
    Sum grad[COLS];
    load_segment<COLS, LOAD_DY>(grad, line_dy, at[W], window.out[W], true);

    const Index start = at[W] * window.stride[W] + left * window.dilation[W] - window.low[W] - SKEW;
#pragma unroll
    for (int i = 0; i < KERNEL_H; i++) {
      const Index y = at[H] * window.stride[H] + (top + i) * window.dilation[H] - window.low[H];
      const bool inside = y >= 0 && y < window.size[H];
      Sum segment[COVER];
      load_segment<COVER, LOAD>(segment, lines + (inside ? y : 0) * window.size[W], start, window.size[W], inside);
#pragma unroll
      for (int col = 0; col < COLS; col++) {
        // Beyond the last column the image may go on, and hold what must not be multiplied, not even by zero.
        if (LOAD_DY < COLS && at[W] + col >= window.out[W]) continue;
#pragma unroll
        for (int j = 0; j < KERNEL_W; j++)
          sums[i][j] = multiply_add(sums[i][j], grad[col], segment[SKEW + col * STRIDE_W + j * DILATION_W]);
      }
    }
  }

  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
#pragma unroll
  for (int i = 0; i < TAPS; i++) {
    Sum sum = sums[i / KERNEL_W][i % KERNEL_W];
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) sum = plus(sum, from_lane(sum, lanes));
    if (lane == 0) warps[warp][i] = sum;
  }
  __syncthreads();
  for (int i = int(threadIdx.x); i < TAPS; i += THREADS) {
    Sum sum = warps[0][i];
    for (int other = 1; other < WARPS; other++) sum = plus(sum, warps[other][i]);
    Index tap = 0;
#pragma unroll
    for (int axis = 0; axis < H; axis++) tap = tap * window.kernel[axis] + piece[axis];
    tap = (tap * window.kernel[H] + top + i / KERNEL_W) * window.kernel[W] + left + i % KERNEL_W;
    result[(share * planes.channels + channel) * taps + tap] = Narrow<Result>::from(sum);
  }
}
