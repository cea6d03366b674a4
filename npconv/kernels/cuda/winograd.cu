// Winograd convolution of one or two axes, without its products: weights and image to points, sums at points to results.
// Not yet verified on a GPU.
//
// A tile of M_H x M_W results needs POINTS_H x POINTS_W products a channel, POINTS = M + R - 1 for R taps. The matrices
// (AT, G, BT of npconv.algorithms.cook_toom, an axis each) are constants: every loop over them is unrolled, zeros cost
// nothing. A transform along one axis stays in the registers that it came in.
//
// Rows of tiles are numbered through all images; a launch works on those from `tiles.first` on. Its columns are their
// tiles, `tiles.columns` of them, padded with zeros to `tiles.pitch`.
//
// Transforms spread NaN, infinity and overflow over their tile. So where a result of a tile is not finite, its thread
// sums the definition's products for that tile instead, and nobody has to look at the operands beforehand.
//
// `weights`  (outputs, channels of a group, R_H, R_W); TURNED: those of the convolution whose input gradient this is,
//            (groups, channels of a group, outputs of a group, R_H, R_W), the last tap first
// `points`   (POINTS_H * POINTS_W, outputs, channels of a group)
// `image`    (batch, channels, *size), C order
// `data`     (POINTS_H * POINTS_W, channels, pitch)
// `sums`     (POINTS_H * POINTS_W, outputs, pitch)
// `bias`     (outputs) or null; `image` and `weights` are those of the other kernels
// `result`   (batch, outputs, *out), overwritten, STORE elements at once: M_W and out[1] are multiples of STORE
#include "epilogue.cuh"
#include "window.cuh"

constexpr int POINTS_H = M_H + R_H - 1, POINTS_W = M_W + R_W - 1;

struct Tiles {
  Index rows, cols, first, columns, pitch;
};

// Row `row` of a matrix of constants, times a vector. `at(i)` is its element, which may be a register.
#define ROW_TIMES(NAME, ROWS, COLS, VALUES)                                                      \
  template <class At>                                                                            \
  __device__ __forceinline__ Element NAME(int row, At at) {                                      \
    constexpr Element matrix[ROWS][COLS] = VALUES;                                               \
    Element sum = Element(0);                                                                    \
    bool begun = false;                                                                          \
    _Pragma("unroll") for (int i = 0; i < COLS; i++) {                                           \
      if (matrix[row][i] == Element(0)) continue;                                                \
      sum = begun ? multiply_add(sum, matrix[row][i], at(i)) : matrix[row][i] * at(i);           \
      begun = true;                                                                              \
    }                                                                                            \
    return sum;                                                                                  \
  }
ROW_TIMES(row_of_bt_h, POINTS_H, POINTS_H, BT_H)
ROW_TIMES(row_of_bt_w, POINTS_W, POINTS_W, BT_W)
ROW_TIMES(row_of_g_h, POINTS_H, R_H, G_H)
ROW_TIMES(row_of_g_w, POINTS_W, R_W, G_W)
ROW_TIMES(row_of_at_h, M_H, POINTS_H, AT_H)
ROW_TIMES(row_of_at_w, M_W, POINTS_W, AT_W)

// The taps of an output, numbered through all groups, and a channel of its group; and where a tap lies among them.
__device__ __forceinline__ const Element* taps_of(const Element* weights, Index output, Index channel, Index outputs,
                                                  Index channels) {
  const Index group = output / outputs;
  const Index pair = TURNED ? (group * channels + channel) * outputs + output % outputs : output * channels + channel;
  return weights + pair * (R_H * R_W);
}
__device__ __forceinline__ int tap(int i, int j) {
  return TURNED ? R_H * R_W - 1 - (i * R_W + j) : i * R_W + j;
}

// A thread transforms the taps of one output and channel.
extern "C" __global__ void __launch_bounds__(THREADS)
    winograd_weights(const Element* __restrict__ weights, Element* __restrict__ points, Index outputs, Index channels,
                     Index pairs) {
  const Index pair = Index(blockIdx.x) * THREADS + Index(threadIdx.x);
  if (pair >= pairs) return;
  const Element* own = taps_of(weights, pair / channels, pair % channels, outputs, channels);
  Element taps[R_H][R_W];
#pragma unroll
  for (int i = 0; i < R_H; i++) {
#pragma unroll
    for (int j = 0; j < R_W; j++) taps[i][j] = own[tap(i, j)];
  }
#pragma unroll
  for (int p = 0; p < POINTS_H; p++) {
    Element line[R_W];
#pragma unroll
    for (int j = 0; j < R_W; j++) line[j] = row_of_g_h(p, [&](int i) { return taps[i][j]; });
#pragma unroll
    for (int q = 0; q < POINTS_W; q++)
      points[Index(p * POINTS_W + q) * pairs + pair] = row_of_g_w(q, [&](int j) { return line[j]; });
  }
}

// A thread transforms what one tile sees of one channel; zeros where that lies outside the image.
extern "C" __global__ void __launch_bounds__(THREADS)
    winograd_data(const Element* __restrict__ image, Element* __restrict__ data, Window window, Tiles tiles,
                  Index channels) {
  const Index number = Index(blockIdx.x) * THREADS + Index(threadIdx.x), planes = channels * tiles.pitch;
  if (number >= planes) return;
  const Index channel = number / tiles.pitch, column = number % tiles.pitch;
  const bool exists = column < tiles.columns;
  const Index row = tiles.first + column / tiles.cols;
  const Index top = row % tiles.rows * M_H - window.low[0], left = column % tiles.cols * M_W - window.low[1];
  const Index plane = exists ? row / tiles.rows * channels + channel : 0;
  const Element* own = image + plane * window.size[0] * window.size[1];

  Element values[POINTS_H][POINTS_W];
#pragma unroll
  for (int j = 0; j < POINTS_W; j++) {
    Element line[POINTS_H];
#pragma unroll
    for (int i = 0; i < POINTS_H; i++) {
      const Index y = top + i, x = left + j;
      const bool inside = exists && y >= 0 && y < window.size[0] && x >= 0 && x < window.size[1];
      line[i] = inside ? own[y * window.size[1] + x] : Element(0);
    }
#pragma unroll
    for (int p = 0; p < POINTS_H; p++) values[p][j] = row_of_bt_h(p, [&](int i) { return line[i]; });
  }
#pragma unroll
  for (int p = 0; p < POINTS_H; p++) {
#pragma unroll
    for (int q = 0; q < POINTS_W; q++)
      data[Index(p * POINTS_W + q) * planes + number] = row_of_bt_w(q, [&](int j) { return values[p][j]; });
  }
}

// A result by its definition: the sum of products over channels and those taps that lie inside the image.
__device__ __forceinline__ Element summed(const Element* image, const Element* weights, const Window& window, Index n,
                                          Index output, Index y, Index x, Index groups, Index outputs,
                                          Index channels) {
  Element sum = Element(0);
#pragma unroll 1
  for (Index k = 0; k < channels * (R_H * R_W); k++) {
    const Index channel = k / (R_H * R_W);
    const int i = int(k % (R_H * R_W)) / R_W, j = int(k % (R_H * R_W)) % R_W;
    const Index row = y - window.low[0] + i, col = x - window.low[1] + j;
    if (row < 0 || row >= window.size[0] || col < 0 || col >= window.size[1]) continue;
    const Index plane = (n * groups + output / outputs) * channels + channel;
    const Element value = image[(plane * window.size[0] + row) * window.size[1] + col];
    sum = multiply_add(sum, taps_of(weights, output, channel, outputs, channels)[tap(i, j)], value);
  }
  return sum;
}

// A thread makes the results of one tile and output channel from the sums at its points.
extern "C" __global__ void __launch_bounds__(THREADS)
    winograd_results(const Element* __restrict__ sums, const Element* __restrict__ bias, Element* __restrict__ result,
                     const Element* __restrict__ image, const Element* __restrict__ weights, Window window, Tiles tiles,
                     Index groups, Index group_outputs, Index channels, int activation) {
  const Index outputs = groups * group_outputs;
  const Index number = Index(blockIdx.x) * THREADS + Index(threadIdx.x);
  if (number >= outputs * tiles.columns) return;
  const Index output = number / tiles.columns, column = number % tiles.columns, planes = outputs * tiles.pitch;
  const Element* own = sums + output * tiles.pitch + column;

  Element values[M_H][POINTS_W];
#pragma unroll
  for (int q = 0; q < POINTS_W; q++) {
    Element line[POINTS_H];
#pragma unroll
    for (int p = 0; p < POINTS_H; p++) line[p] = own[Index(p * POINTS_W + q) * planes];
#pragma unroll
    for (int i = 0; i < M_H; i++) values[i][q] = row_of_at_h(i, [&](int p) { return line[p]; });
  }

  const Element offset = bias ? bias[output] : Element(0);
  const Index row = tiles.first + column / tiles.cols;
  const Index top = row % tiles.rows * M_H, left = column % tiles.cols * M_W;
  Element* plane = result + (row / tiles.rows * outputs + output) * window.out[0] * window.out[1];
  bool finite = true;
#pragma unroll
  for (int i = 0; i < M_H; i++) {
    if (top + i >= window.out[0]) break;
    Element* line = plane + (top + i) * window.out[1] + left;
#pragma unroll
    for (int j = 0; j < M_W; j += STORE) {
      Vector<Element, STORE> part;
#pragma unroll
      for (int k = 0; k < STORE; k++) {
        const Element sum = row_of_at_w(j + k, [&](int q) { return values[i][q]; });
        finite = finite && sum - sum == Element(0);
        part.at[k] = activated(plus(sum, offset), activation);
      }
      if (left + j < window.out[1]) store_vector<Element, STORE>(line + j, part);
    }
  }
  if (finite) return;
#pragma unroll 1
  for (Index y = top; y < top + M_H && y < window.out[0]; y++) {
#pragma unroll 1
    for (Index x = left; x < left + M_W && x < window.out[1]; x++) {
      const Element sum = summed(image, weights, window, row / tiles.rows, output, y, x, groups, group_outputs, channels);
      plane[y * window.out[1] + x] = activated(plus(sum, offset), activation);
    }
  }
}
