// The tile core on a GPU's ordinary arithmetic: every thread holds ROWS x COLS sums and multiplies one k after the other.
// Not yet verified on a GPU.
//
// A core says how a slice of A and of B lies in shared memory (`at_a`, `at_b`), in which type (`Held`), multiplies a
// slice, and hands out its sums. `implicit_gemm.cu` does everything else.
#ifndef NPCONV_REGISTER_TILE_CUH
#define NPCONV_REGISTER_TILE_CUH

struct Core {
  typedef Sum Held;
  static constexpr int PACK = 16 / int(sizeof(Sum));  // sums that are read from shared memory at once
  static constexpr int STORED = PACK;                 // neighbours in n that a thread holds
  static constexpr int THREADS_M = TILE_M / ROWS, THREADS_N = TILE_N / COLS, THREADS = THREADS_M * THREADS_N;
  static constexpr int PITCH_A = TILE_M + PACK, PITCH_B = TILE_N + PACK;  // columns of k lie in different banks
  static constexpr int SLICE_A = TILE_K * PITCH_A, SLICE_B = TILE_K * PITCH_B;
  static_assert(TILE_M % ROWS == 0 && TILE_N % COLS == 0 && ROWS % PACK == 0 && COLS % PACK == 0, "whole packs");
  static_assert(LOAD_A == 1, "neighbours in k are not neighbours in shared memory");

  static __device__ __forceinline__ int at_a(int k, int m) { return k * PITCH_A + m; }
  static __device__ __forceinline__ int at_b(int k, int n) { return k * PITCH_B + n; }
  static __device__ __forceinline__ Held held(Element value) { return widen(value); }

  const int thread_m = int(threadIdx.x) / THREADS_N, thread_n = int(threadIdx.x) % THREADS_N;
  Sum sums[ROWS][COLS] = {};

  __device__ __forceinline__ void multiply(const Held* a, const Held* b) {
#pragma unroll
    for (int k = 0; k < TILE_K; k++) {
      Vector<Sum, PACK> left[ROWS / PACK], right[COLS / PACK];
#pragma unroll
      for (int i = 0; i < ROWS / PACK; i++) left[i] = load_vector<Sum, PACK>(a + at_a(k, (i * THREADS_M + thread_m) * PACK));
#pragma unroll
      for (int j = 0; j < COLS / PACK; j++) right[j] = load_vector<Sum, PACK>(b + at_b(k, (j * THREADS_N + thread_n) * PACK));
#pragma unroll
      for (int i = 0; i < ROWS; i++) {
#pragma unroll
        for (int j = 0; j < COLS; j++)
          sums[i][j] = multiply_add(sums[i][j], left[i / PACK].at[i % PACK], right[j / PACK].at[j % PACK]);
      }
    }
  }

  // Calls put(m, n, sums) for STORE neighbours in n after the other.
  template <class Put>
  __device__ __forceinline__ void each(const Put& put) const {
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
#pragma unroll
      for (int j = 0; j < COLS; j += STORE)
        put((i / PACK * THREADS_M + thread_m) * PACK + i % PACK, (j / PACK * THREADS_N + thread_n) * PACK + j % PACK,
            &sums[i][j]);
    }
  }
};

#endif
