// The tile core on tensor cores, from sm_80: every warp holds ROWS x COLS sums as fragments of mma.sync, in float32.
// Not yet verified on a GPU.
//
// MMA says what is multiplied:
//
//   F16, BF16   elements as they are: products exact
//   TF32        float32 rounded to 11 bits, half away from zero: products exact, of rounded elements
//   TF32X3      float32 as the sum of two such numbers, big + small: three products, small * small is left out
//
// The tables of which lane holds what are those of the PTX ISA (Warp Level Matrix Instructions, mma.m16n8k16, mma.m16n8k8
// and ldmatrix). Counted in words of 32 bits (a pair of halves, or one TF32) the fragments of all formats are the same:
//
//   A, 16 rows x 8 words of k:   word r of lane l is row l/4 + 8 (r%2), word l%4 + 4 (r/2)
//   B, 8 columns x 8 words of k: word r of lane l is column l/4, word l%4 + 4 r
//   D, 16 rows x 8 columns:      sum r of lane l is row l/4 + 8 (r/2), column 2 (l%4) + r%2
//
// A lies in shared memory with k as the inner side, so that ldmatrix brings it; B as it lies in memory: along k as A does,
// or along n, where ldmatrix turns halves, and floats, which it cannot turn, are read one by one. Pitches are odd
// multiples of 16 bytes (floats along n: 8 words more than a multiple of 32), so that no two lanes meet in a bank.
#ifndef NPCONV_TENSOR_TILE_CUH
#define NPCONV_TENSOR_TILE_CUH

struct Core {
  typedef Element Held;
  static constexpr int PACK = 16 / int(sizeof(Held));  // elements of a row that ldmatrix reads
  static constexpr int STORED = 2;                     // neighbours in n that a lane holds
  static constexpr int STEP = 2 * PACK;                // k of one instruction
  static constexpr int WARPS_M = TILE_M / ROWS, WARPS_N = TILE_N / COLS, THREADS = 32 * WARPS_M * WARPS_N;
  static constexpr bool ALONG_K = OPERATION == WEIGHT_GRAD || LAST, TURNED = !ALONG_K && sizeof(Held) == 2;
  static constexpr int PITCH_A = TILE_K + PACK, PITCH_B = ALONG_K ? PITCH_A : TILE_N + 8;
  static constexpr int SLICE_A = TILE_M * PITCH_A, SLICE_B = (ALONG_K ? TILE_N : TILE_K) * PITCH_B;
  static_assert(TILE_M % ROWS == 0 && TILE_N % COLS == 0 && ROWS % 16 == 0 && COLS % 16 == 0, "whole fragments");
  static_assert(TILE_K % STEP == 0 && TILE_N % 32 == 0, "whole steps, and pitches that spread over the banks");
  static_assert(sizeof(Held) == (MMA == TF32 || MMA == TF32X3 ? 4 : 2), "a format and its elements");

  static __device__ __forceinline__ int at_a(int k, int m) { return m * PITCH_A + k; }
  static __device__ __forceinline__ int at_b(int k, int n) { return ALONG_K ? n * PITCH_B + k : k * PITCH_B + n; }
  static __device__ __forceinline__ Held held(Element value) { return value; }

  const int lane = int(threadIdx.x) % 32;
  const int warp_m = int(threadIdx.x) / 32 / WARPS_N * ROWS, warp_n = int(threadIdx.x) / 32 % WARPS_N * COLS;
  float sums[ROWS / 16][COLS / 8][4] = {};

  __device__ __forceinline__ void multiply(const Held* a, const Held* b) {
#pragma unroll
    for (int k = 0; k < TILE_K; k += STEP) {
      unsigned right[COLS / 8][2];
#pragma unroll
      for (int j = 0; j < COLS / 8; j += 2) read_b(b, k, warp_n + j * 8, right[j], right[j + 1]);
#pragma unroll
      for (int i = 0; i < ROWS / 16; i++) {
        unsigned left[4];
        load_matrices(left, a + at_a(k + lane / 16 * PACK, warp_m + i * 16 + lane % 16));
#pragma unroll
        for (int j = 0; j < COLS / 8; j++) add_product(sums[i][j], left, right[j]);
      }
    }
  }

  // Two fragments of B, for columns n to n + 7 and the next eight.
  __device__ __forceinline__ void read_b(const Held* b, int k, int n, unsigned (&first)[2], unsigned (&second)[2]) {
    if (ALONG_K || TURNED) {
      unsigned words[4];
      if (ALONG_K)
        load_matrices(words, b + at_b(k + lane / 8 % 2 * PACK, n + lane / 16 * 8 + lane % 8));
      else
        load_matrices_turned(words, b + at_b(k + lane % 16, n + lane / 16 * 8));
      first[0] = words[0], first[1] = words[1], second[0] = words[2], second[1] = words[3];
    } else {
#pragma unroll
      for (int r = 0; r < 2; r++) {
        first[r] = word(b[at_b(k + lane % 4 + 4 * r, n + lane / 4)]);
        second[r] = word(b[at_b(k + lane % 4 + 4 * r, n + 8 + lane / 4)]);
      }
    }
  }

  static __device__ __forceinline__ unsigned word(float value) { return __float_as_uint(value); }
  static __device__ __forceinline__ unsigned word(float16 value) { return value.bits; }
  static __device__ __forceinline__ unsigned word(bfloat16 value) { return value.bits; }

  static __device__ __forceinline__ void add_product(float (&sum)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    if (MMA == F16) multiply_matrices_f16(sum, a, b);
    if (MMA == BF16) multiply_matrices_bf16(sum, a, b);
    if (MMA == TF32 || MMA == TF32X3) {
      unsigned big_a[4], big_b[2], small_a[4], small_b[2];
      split(big_a, small_a, a);
      split(big_b, small_b, b);
      if (MMA == TF32) {
        multiply_matrices_tf32(sum, big_a, big_b);
        return;
      }
      // Eight k are summed by themselves, and then added in float32, which rounds better than tensor cores do.
      float part[4] = {};
      multiply_matrices_tf32(part, small_a, big_b);
      multiply_matrices_tf32(part, big_a, small_b);
      // An infinite element leaves NaN for its small part, which the big parts alone answer for.
#pragma unroll
      for (int r = 0; r < 4; r++) part[r] = part[r] - part[r] == 0 ? part[r] : 0;
      multiply_matrices_tf32(part, big_a, big_b);
#pragma unroll
      for (int r = 0; r < 4; r++) sum[r] += part[r];
    }
  }

  // The nearest TF32, and the one nearest to what is left, which a subtraction finds exactly.
  template <int COUNT>
  static __device__ __forceinline__ void split(unsigned (&big)[COUNT], unsigned (&small)[COUNT],
                                               const unsigned (&words)[COUNT]) {
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
      const float value = __uint_as_float(words[i]);
      big[i] = float_to_tf32(value);
      small[i] = MMA == TF32X3 ? float_to_tf32(value - __uint_as_float(big[i])) : 0;
    }
  }

  // Calls put(m, n, sums) for STORE neighbours in n after the other.
  template <class Put>
  __device__ __forceinline__ void each(const Put& put) const {
#pragma unroll
    for (int i = 0; i < ROWS / 16; i++) {
#pragma unroll
      for (int j = 0; j < COLS / 8; j++) {
#pragma unroll
        for (int r = 0; r < 4; r += STORE)
          put(warp_m + i * 16 + lane / 4 + r / 2 * 8, warp_n + j * 8 + lane % 4 * 2 + r % 2, &sums[i][j][r]);
      }
    }
  }
};

#endif
