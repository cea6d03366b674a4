// Depthwise convolution, forward; and its input gradient where the stride is 1, which is a convolution with the taps in
// reverse. Not yet verified on a GPU.
//
// A thread computes ROWS x COLS neighbouring results of one plane. It reads the image a line at a time into registers
// and adds each line to all results that see it, so that an element is read from the cache about once a thread. The
// last two axes of the kernel are cut into pieces of KERNEL_H x KERNEL_W taps (usually one), whose weights stay in
// registers; a loop runs over the pieces, over all other axes' taps, and over the channels that are summed.
//
// `image`    (batch, channels / spread * fan, *size), C order, LOAD elements are read at once
// `weights`  (channels * fan, taps); TURNED: the last tap comes first
// `bias`     (channels) or null
// `result`   (batch, channels, *out), overwritten, STORE elements are written at once
//
// LOAD > 1 asks for: size[-1], COLS * STRIDE_W and the image's address in elements are multiples of LOAD; SKEW is
// -low[-1] modulo LOAD and the dilated columns of a piece but the first begin at multiples of LOAD too (one piece).
// STORE > 1: out[-1], COLS and the result's address are multiples of STORE. KERNEL_H and KERNEL_W divide the kernel.
#include "epilogue.cuh"
#include "planes.cuh"

constexpr int SEGMENT = (COLS - 1) * STRIDE_W + (KERNEL_W - 1) * DILATION_W + 1;
constexpr int COVER = (SKEW + SEGMENT + LOAD - 1) / LOAD * LOAD;
constexpr int LINES = (ROWS - 1) * STRIDE_H + (KERNEL_H - 1) * DILATION_H + 1;

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
    depthwise(const Element* __restrict__ image, const Element* __restrict__ weights, const Element* __restrict__ bias,
              Element* __restrict__ result, Window window, Planes planes, int activation) {
  constexpr int H = AXES - 2, W = AXES - 1;
  const Index plane_in = product(window.size), plane_out = product(window.out), taps = product(window.kernel);

  Index extent[AXES], at[AXES];
#pragma unroll
  for (int axis = 0; axis < H; axis++) extent[axis] = window.out[axis];
  extent[H] = (window.out[H] + ROWS - 1) / ROWS;
  extent[W] = (window.out[W] + COLS - 1) / COLS;
  const Index plane = decode(Index(blockIdx.x) * THREADS + Index(threadIdx.x), extent, at);
  if (plane >= planes.batch * planes.channels) return;
  at[H] *= ROWS;
  at[W] *= COLS;

  const Index channel = plane % planes.channels;
  const Index first_plane = (plane - channel) / planes.spread * planes.fan + channel / planes.spread * planes.fan;

  Index pieces[AXES], zero[AXES] = {}, one[AXES];
#pragma unroll
  for (int axis = 0; axis < AXES; axis++) {
    pieces[axis] = window.kernel[axis];
    one[axis] = 1;
  }
  pieces[H] /= KERNEL_H;
  pieces[W] /= KERNEL_W;

  Sum sums[ROWS][COLS] = {};
  for (Index feed = 0; feed < planes.fan; feed++) {
    const Element* plane_image = image + (first_plane + feed) * plane_in;
    const Element* row_weights = weights + (channel * planes.fan + feed) * taps;
    Index piece[AXES] = {};
    do {
      // Where the piece lies in the other axes, and whether the image has that.
      bool exists = true;
      Index lead = 0, tap_lead = 0;
#pragma unroll
      for (int axis = 0; axis < H; axis++) {
        const Index place = at[axis] * window.stride[axis] + piece[axis] * window.dilation[axis] - window.low[axis];
        exists = exists && place >= 0 && place < window.size[axis];
        lead = lead * window.size[axis] + place;
        tap_lead = tap_lead * window.kernel[axis] + piece[axis];
      }
      if (!exists) continue;
      const Element* lines = plane_image + lead * window.size[H] * window.size[W];
      const Index top = piece[H] * KERNEL_H, left = piece[W] * KERNEL_W;

      Sum w[KERNEL_H][KERNEL_W];
#pragma unroll
      for (int i = 0; i < KERNEL_H; i++) {
#pragma unroll
        for (int j = 0; j < KERNEL_W; j++) {
          const Index tap = (tap_lead * window.kernel[H] + top + i) * window.kernel[W] + left + j;
          w[i][j] = widen(row_weights[TURNED ? taps - 1 - tap : tap]);
        }
      }

      const Index first_line = at[H] * window.stride[H] + top * window.dilation[H] - window.low[H];
      const Index start = at[W] * window.stride[W] + left * window.dilation[W] - window.low[W] - SKEW;
#pragma unroll
      for (int line = 0; line < LINES; line++) {
        const Index y = first_line + line;
        const bool inside = y >= 0 && y < window.size[H];
        Sum segment[COVER];
        load_segment<COVER, LOAD>(segment, lines + (inside ? y : 0) * window.size[W], start, window.size[W], inside);
#pragma unroll
        for (int row = 0; row < ROWS; row++) {
#pragma unroll
          for (int i = 0; i < KERNEL_H; i++) {
            if (row * STRIDE_H + i * DILATION_H != line) continue;
#pragma unroll
            for (int j = 0; j < KERNEL_W; j++) {
#pragma unroll
              for (int col = 0; col < COLS; col++)
                sums[row][col] =
                    multiply_add(sums[row][col], w[i][j], segment[SKEW + col * STRIDE_W + j * DILATION_W]);
            }
          }
        }
      }
    } while (advance(piece, zero, one, pieces));
  }

  const Sum offset = bias ? widen(bias[channel]) : Sum{};
  Index lead = 0;
#pragma unroll
  for (int axis = 0; axis < H; axis++) lead = lead * window.out[axis] + at[axis];
#pragma unroll
  for (int row = 0; row < ROWS; row++) {
    if (at[H] + row >= window.out[H]) break;
    Element* line = result + plane * plane_out + (lead * window.out[H] + at[H] + row) * window.out[W];
#pragma unroll
    for (int col = 0; col < COLS; col += STORE) {
      Vector<Element, STORE> part;
#pragma unroll
      for (int i = 0; i < STORE; i++)
        part.at[i] = Narrow<Element>::from(activated(plus(sums[row][col + i], offset), activation));
      if (at[W] + col < window.out[W]) store_vector<Element, STORE>(line + at[W] + col, part);
    }
  }
}
