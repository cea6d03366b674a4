// Convolution and both gradients as one matrix product whose matrices are never written down. Not yet verified on a GPU.
//
// All three are  D[m][n] = sum over k of A[m][k] * B[k][n]  for each group, where A and D are arrays as they are, and B
// is read from an image or a gradient by geometry:
//
//   OPERATION     A              B                     D     m           n                    k
//   FORWARD       weights        image                 y     outputs     batch, positions     channels, taps
//   INPUT_GRAD    weights        dy                    dx    channels    batch, elements      outputs, taps
//   WEIGHT_GRAD   dy             image                 dw    outputs     channels, taps       batch, positions
//
// What the address of an element depends on splits into a part from k and a part from n (or m), so both are tabulated
// in shared memory: those of n once, those of k for one slice ahead. An element of B lies outside, and is zero, where the
// coordinates from k and n add up to a place outside. Nothing is padded, copied or filled with zeros in memory.
//
// The input gradient with a stride has prod(stride) phases: the elements of one phase meet the same taps, a regular
// subset, and see the gradient without a stride. Each phase is a matrix product of its own, so no product has a zero
// in it that comes from the stride.
//
// A block computes a tile of TILE_M x TILE_N on one of two cores: with MMA on tensor cores, a warp ROWS x COLS of it
// (tensor_tile.cuh), else a thread that many (register_tile.cuh). Slices of TILE_K go through STAGES buffers in shared
// memory, filled by asynchronous copies, which take 4 bytes at least and leave elements as they are; others wait in
// registers while a slice is multiplied. Sums run over k in order. With SPLITS (weight gradients only) a block sums a
// share of k and writes its sums to `result`, (splits, *shape of dw) of Sum; `sum_shares` adds them in order, so that
// every run gives the same bits.
//
// LAST: image, dy, result and dx are channels-last, (batch, *spatial, groups * channels); not for weight gradients. Then k
// is (taps, channels) or (taps, outputs), so that neighbours in k are neighbours in B, and in the weights, which are
// (groups, outputs, taps, channels) or (groups, channels, taps, outputs).
//
// LOAD elements of B are copied at once where a whole row of k is as contiguous as n, for kernels of one tap: then the
// positions and b's address are multiples of LOAD, and nothing is padded. With LAST they are copied along k (on tensor
// cores), where a group's channels or outputs, and b's address, are multiples of LOAD. LOAD_A elements of A are copied at once where
// rows of A, and shares of them, are multiples of LOAD_A, as is a's address. STORE elements of D are written at once where
// neighbours in n are neighbours in memory, in runs that are multiples of STORE, as is the result's address.
//
// `a`, `b`    see the table; C order
// `bias`      (output channels) or null, and `activation`: FORWARD only
// `result`    D, overwritten
#include "epilogue.cuh"
#include "window.cuh"

enum Operation { FORWARD, INPUT_GRAD, WEIGHT_GRAD };
enum Format { NONE, F16, BF16, TF32, TF32X3 };
#if MMA
#include "tensor_tile.cuh"
#else
#include "register_tile.cuh"
#endif

struct Shape {
  Index batch, groups, channels, outputs;  // channels and outputs of one group
};

typedef Core::Held Held;
constexpr int THREADS = Core::THREADS;
constexpr bool B_ALONG_K = OPERATION == WEIGHT_GRAD || LAST;  // along which side of B neighbours in memory lie
constexpr int ROWS_OF_A = TILE_K / LOAD_A;            // of LOAD_A elements each, in one m
constexpr int COPIES_A = TILE_M * ROWS_OF_A / THREADS;
constexpr int COLUMNS = TILE_N / LOAD;  // of LOAD elements each
constexpr int COPIES_B = COLUMNS * TILE_K / THREADS;
constexpr int ROWS_OF_B = TILE_K / LOAD;  // of LOAD elements each, in one n, where they lie along k
constexpr bool ASYNC_A = ASYNC && LOAD_A * sizeof(Held) >= 4, ASYNC_B = ASYNC && LOAD * sizeof(Held) >= 4;
// Columns of B that a thread brings along n, the same ones in every slice; along k it keeps none, which would take too
// many registers.
constexpr int OWN = B_ALONG_K ? 1 : COLUMNS > THREADS ? COLUMNS / THREADS : 1;
static_assert(LOAD == 1 || (LOAD == 16 / sizeof(Held) && ASYNC && (LAST ? MMA != NONE : !B_ALONG_K)),
              "vectors are copied as they are, along the side that lies in memory");
static_assert(!LAST || (OPERATION != WEIGHT_GRAD && STORE == 1), "weight gradients are of channels-first arrays");
static_assert(LOAD_A == 1 || (LOAD_A == 16 / sizeof(Held) && ASYNC), "vectors are copied as they are, along k");
static_assert(STORE == 1 || STORE == Core::STORED, "a pack or its elements are stored");
static_assert(THREADS % ROWS_OF_A == 0 && TILE_M * ROWS_OF_A % THREADS == 0, "whole loads of A");
static_assert(THREADS % TILE_K == 0 && COLUMNS * TILE_K % THREADS == 0, "whole loads of B");
static_assert(B_ALONG_K || THREADS % COLUMNS == 0 || COLUMNS % THREADS == 0, "a thread's columns are the same in each k");

// What one k or one n adds to an address in B, and its coordinates; what it adds to one in A (k) or D (n), and -1 where
// there is no such k or n.
struct alignas(16) Place {
  Index element, other;
  Index at[AXES];
};

struct alignas(16) Storage {
  Held a[STAGES][Core::SLICE_A], b[STAGES][Core::SLICE_B];
  Place of_k[2][TILE_K], of_n[TILE_N];
};

// The matrix product that a block works on: its geometry, after the phase has been taken out of it.
struct Problem {
  // A phase's first tap, its taps, the tap's step, and where its elements lie in the image.
  Index first[AXES], taps[AXES], step[AXES], phase[AXES], count[AXES];
  Index rows, cols, depth, positions, elements, all_taps;
};

__device__ __forceinline__ Problem problem_of(const Window& window, const Steps& steps, const Shape& shape,
                                              Index phase) {
  Problem p;
  p.positions = product(window.out);
  p.elements = product(window.size);
  p.all_taps = product(window.kernel);
#pragma unroll
  for (int axis = AXES - 1; axis >= 0; axis--) {
    p.phase[axis] = 0;
    p.first[axis] = 0;
    p.step[axis] = 1;
    p.taps[axis] = window.kernel[axis];
    p.count[axis] = window.out[axis];
    if (OPERATION == INPUT_GRAD) {
      const Index stride = window.stride[axis], residue = phase % stride;
      phase /= stride;
      p.phase[axis] = residue;
      p.step[axis] = steps.at[axis];
      p.first[axis] =
          first_tap(residue + window.low[axis], stride, window.dilation[axis], window.kernel[axis], p.step[axis]);
      p.taps[axis] = (window.kernel[axis] - p.first[axis] + p.step[axis] - 1) / p.step[axis];
      p.count[axis] = (window.size[axis] - residue + stride - 1) / stride;
      if (residue >= window.size[axis]) p.count[axis] = 0;
    }
  }
  const Index taps = product(p.taps), count = product(p.count);
  p.rows = OPERATION == INPUT_GRAD ? shape.channels : shape.outputs;
  p.cols = OPERATION == WEIGHT_GRAD ? shape.channels * taps : shape.batch * count;
  p.depth = OPERATION == FORWARD ? shape.channels * taps : OPERATION == INPUT_GRAD ? shape.outputs * taps : shape.batch * count;
  return p;
}

// Coordinates under tap number `tap` of the phase, what they add to an address, and the tap's number in the weights.
__device__ __forceinline__ Index place_tap(const Window& window, const Problem& p, Index number, Place& place,
                                           Index& tap) {
  Index at[AXES];
  const Index rest = decode(number, p.taps, at);
  Index element = 0;
  tap = 0;
#pragma unroll
  for (int axis = 0; axis < AXES; axis++) {
    const Index k = p.first[axis] + at[axis] * p.step[axis];
    tap = tap * window.kernel[axis] + k;
    if (OPERATION == INPUT_GRAD) {
      // Exact: that is what makes it a tap of this phase.
      place.at[axis] = (p.phase[axis] + window.low[axis] - k * window.dilation[axis]) / window.stride[axis];
      element = element * window.out[axis] + place.at[axis];
    } else {
      place.at[axis] = k * window.dilation[axis] - window.low[axis];
      element = element * window.size[axis] + place.at[axis];
    }
  }
  place.element = element;
  return rest;
}

// Coordinates of position `number`, what they add to an address of B, and the number of the result or element itself.
__device__ __forceinline__ Index place_position(const Window& window, const Problem& p, Index number, Place& place) {
  Index at[AXES];
  const Index rest = decode(number, p.count, at);
  Index element = 0, own = 0;
#pragma unroll
  for (int axis = 0; axis < AXES; axis++) {
    if (OPERATION == INPUT_GRAD) {
      place.at[axis] = at[axis];
      element = element * window.out[axis] + at[axis];
      own = own * window.size[axis] + p.phase[axis] + at[axis] * window.stride[axis];
    } else {
      place.at[axis] = at[axis] * window.stride[axis];
      element = element * window.size[axis] + place.at[axis];
      own = own * window.out[axis] + at[axis];
    }
  }
  place.element = element;
  place.other = own;
  return rest;
}

// What k means: an address in B, and one in A.
__device__ __forceinline__ Place place_of_k(const Window& window, const Shape& shape, const Problem& p, Index k,
                                            Index stop) {
  Place place;
  if (k >= stop) {
    place.other = -1;
    return place;
  }
  if (OPERATION == WEIGHT_GRAD) {
    const Index n = place_position(window, p, k, place);
    place.element += n * shape.groups * shape.channels * p.elements;
    place.other += n * shape.groups * shape.outputs * p.positions;
  } else if (LAST) {
    const Index inner = OPERATION == FORWARD ? shape.channels : shape.outputs;
    Index tap;
    place_tap(window, p, k / inner, place, tap);
    place.element = place.element * shape.groups * inner + k % inner;
    place.other = tap * inner + k % inner;
  } else {
    Index tap;
    const Index channel = place_tap(window, p, k, place, tap);
    place.element += channel * (OPERATION == FORWARD ? p.elements : p.positions);
    place.other = OPERATION == FORWARD ? k : channel * shape.channels * p.all_taps + tap;
  }
  return place;
}

// What n means: an address in B, and one in D.
__device__ __forceinline__ Place place_of_n(const Window& window, const Shape& shape, const Problem& p, Index n) {
  Place place;
  if (n >= p.cols) {
    place.other = -1;
    return place;
  }
  if (OPERATION == WEIGHT_GRAD) {
    Index tap;
    const Index channel = place_tap(window, p, n, place, tap);
    place.element += channel * p.elements;
    place.other = n;
  } else if (LAST) {
    const Index image = place_position(window, p, n, place);
    place.element += image * (OPERATION == FORWARD ? p.elements : p.positions);
    place.element *= shape.groups * (OPERATION == FORWARD ? shape.channels : shape.outputs);
    place.other += image * (OPERATION == FORWARD ? p.positions : p.elements);
    place.other *= shape.groups * p.rows;
  } else {
    const Index image = place_position(window, p, n, place);
    place.element += image * shape.groups * (OPERATION == FORWARD ? shape.channels * p.elements : shape.outputs * p.positions);
    place.other += image * shape.groups * (OPERATION == FORWARD ? shape.outputs * p.positions : shape.channels * p.elements);
  }
  return place;
}

// Brings COUNT elements to shared memory: at once, without passing through registers, or to `kept`.
template <int COUNT, bool COPIED>
__device__ __forceinline__ void bring(Held* to, Held& kept, const Element* from, bool valid) {
  if constexpr (COPIED) {
    typedef Vector<Element, COUNT> Part;
    copy_async_element(reinterpret_cast<Part*>(to), reinterpret_cast<const Part*>(from), valid);
  } else {
    kept = valid ? Core::held(*from) : Held{};
  }
}

#if SPLITS
typedef Sum Result;
#else
typedef Element Result;
#endif

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
    implicit_gemm(const Element* __restrict__ a, const Element* __restrict__ b, const Element* __restrict__ bias,
                  Result* __restrict__ result, Window window, Steps steps, Shape shape, Index phases, Index tiles_m,
                  Index tiles_n, Index per_split, int activation) {
  DYNAMIC_SHARED(bytes);
  Storage& storage = *reinterpret_cast<Storage*>(bytes);
  const int thread = int(threadIdx.x);

  // Blocks of the same columns are neighbours, so that they find B in the cache.
  Index number = Index(blockIdx.x);
  const Index tile_m = number % tiles_m;
  number /= tiles_m;
  const Index tile_n = number % tiles_n;
  number /= tiles_n;
  const Index group = number % shape.groups;
  number /= shape.groups;
  const Index phase = number % phases, split = number / phases;
  const Problem p = problem_of(window, steps, shape, phase);
  const Index first_m = tile_m * TILE_M, first_n = tile_n * TILE_N;
  // Phases differ in size; the grid is that of the largest.
  if (first_n >= p.cols) return;
  const Index first_k = split * per_split;
  const Index stop_k = first_k + per_split < p.depth ? first_k + per_split : p.depth;
  const Index slices = stop_k > first_k ? (stop_k - first_k + TILE_K - 1) / TILE_K : 0;

  // How far rows of A and D lie apart, and where the group begins.
  const Index pitch_a = OPERATION == WEIGHT_GRAD ? p.positions
                        : OPERATION == FORWARD   ? p.depth
                                                 : p.all_taps * (LAST ? shape.outputs : 1);
  const Index pitch_d = LAST ? 1 : OPERATION == FORWARD ? p.positions : OPERATION == INPUT_GRAD ? p.elements : p.cols;
  a += group * shape.outputs * (OPERATION == WEIGHT_GRAD ? p.positions : shape.channels * p.all_taps);
  b += group * (OPERATION == INPUT_GRAD ? shape.outputs * (LAST ? 1 : p.positions)
                                        : shape.channels * (LAST ? 1 : p.elements));
  result += group * p.rows * pitch_d;
  if (OPERATION == WEIGHT_GRAD) result += split * shape.groups * p.rows * p.cols;

  for (int i = thread; i < TILE_N; i += THREADS) storage.of_n[i] = place_of_n(window, shape, p, first_n + i);
  const auto tabulate = [&](Index slice) {
    if (thread < TILE_K)
      storage.of_k[slice % 2][thread] = place_of_k(window, shape, p, first_k + slice * TILE_K + thread, stop_k);
  };
  tabulate(0);
  __syncthreads();

  Place own[OWN];
#pragma unroll
  for (int i = 0; i < OWN && !B_ALONG_K; i++) {
    const int number = thread + i * THREADS;
    own[i] = storage.of_n[number % COLUMNS * LOAD];
  }

  Held kept_a[ASYNC_A ? 1 : COPIES_A], kept_b[ASYNC_B ? 1 : COPIES_B];
  const auto fetch = [&](Index slice) {
    const Place* of_k = storage.of_k[slice % 2];
    Held* to_a = storage.a[slice % STAGES];
    Held* to_b = storage.b[slice % STAGES];
#pragma unroll
    for (int i = 0; i < COPIES_A; i++) {
      const int k = thread % ROWS_OF_A * LOAD_A, m = thread / ROWS_OF_A + i * (THREADS / ROWS_OF_A);
      const bool valid = of_k[k].other >= 0 && first_m + m < p.rows;
      bring<LOAD_A, ASYNC_A>(to_a + Core::at_a(k, m), kept_a[ASYNC_A ? 0 : i],
                             valid ? a + ((first_m + m) * pitch_a + of_k[k].other) : a, valid);
    }
#pragma unroll
    for (int i = 0; i < COPIES_B; i++) {
      const int number = thread + i * THREADS;
      const int k = B_ALONG_K ? number % ROWS_OF_B * LOAD : number / COLUMNS;
      const int n = B_ALONG_K ? number / ROWS_OF_B : number % COLUMNS * LOAD;
      const Place from_k = of_k[k], &from_n = B_ALONG_K ? storage.of_n[n] : own[i % OWN];
      bool valid = from_k.other >= 0 && from_n.other >= 0;
      if (valid) {
#pragma unroll
        for (int axis = 0; axis < AXES; axis++) {
          const Index at = from_k.at[axis] + from_n.at[axis];
          valid = valid && at >= 0 && at < (OPERATION == INPUT_GRAD ? window.out[axis] : window.size[axis]);
        }
      }
      bring<LOAD, ASYNC_B>(to_b + Core::at_b(k, n), kept_b[ASYNC_B ? 0 : i],
                           valid ? b + (from_k.element + from_n.element) : b, valid);
    }
  };
  // Puts what was kept of a slice into shared memory.
  const auto settle = [&](Index slice) {
#pragma unroll
    for (int i = 0; i < COPIES_A && !ASYNC_A; i++)
      storage.a[slice % STAGES][Core::at_a(thread % TILE_K, thread / TILE_K + i * (THREADS / TILE_K))] = kept_a[i];
#pragma unroll
    for (int i = 0; i < COPIES_B && !ASYNC_B; i++) {
      const int number = thread + i * THREADS;
      const int k = B_ALONG_K ? number % TILE_K : number / COLUMNS, n = B_ALONG_K ? number / TILE_K : number % COLUMNS;
      storage.b[slice % STAGES][Core::at_b(k, n)] = kept_b[i];
    }
  };

  // Before slice s is used, slices up to s + STAGES - 2 have been asked for.
  for (Index slice = 0; slice < STAGES - 1; slice++) {
    if (slice < slices) {
      fetch(slice);
      settle(slice);
    }
    copy_async_commit();
    tabulate(slice + 1);
    __syncthreads();
  }

  Core core;
  for (Index slice = 0; slice < slices; slice++) {
    copy_async_wait<STAGES - 2>();
    // All have what they asked for of this slice, and have read what the next fetch overwrites.
    __syncthreads();
    const Index ahead = slice + STAGES - 1;
    if (ahead < slices) fetch(ahead);
    copy_async_commit();
    // Long divisions of a few threads, under way while the others multiply.
    tabulate(slice + STAGES);
    core.multiply(storage.a[slice % STAGES], storage.b[slice % STAGES]);
    if (ahead < slices) settle(ahead);
  }

  core.each([&](int row, int column, const Sum* sums) {
    const Index m = first_m + row, to = storage.of_n[column].other;
    if (m >= p.rows) return;
    if (to < 0) return;
    const Sum offset = OPERATION == FORWARD && bias ? widen(bias[group * p.rows + m]) : Sum{};
    Vector<Result, STORE> part;
#pragma unroll
    for (int s = 0; s < STORE; s++) {
      Sum sum = sums[s];
      if (OPERATION == FORWARD) sum = activated(plus(sum, offset), activation);
      part.at[s] = Narrow<Result>::from(sum);
    }
    store_vector<Result, STORE>(result + (m * pitch_d + to), part);
  });
}
