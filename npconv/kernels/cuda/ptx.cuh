// The one place for instructions that C++ has no name for, and for what depends on the architecture.
//
// A test header that executes kernels on a CPU defines NPCONV_PTX_CUH and the same functions before this file is read.
#ifndef NPCONV_PTX_CUH
#define NPCONV_PTX_CUH

// Shared memory whose size the launch says, 16-byte aligned.
#define DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]

// Copies one element of 4, 8 or 16 bytes from global to shared memory, or zeros where it is not `valid`; then `from`
// may be any address that can be formed. The element may be used after `copy_async_wait` and a barrier, not before.
// Turing has no such instruction: there the copy is done when the function returns.
template <class T>
__device__ __forceinline__ void copy_async_element(T* to, const T* from, bool valid) {
#if __CUDA_ARCH__ >= 800
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(to));
  const int bytes = valid ? int(sizeof(T)) : 0;
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(address), "l"(from), "n"(int(sizeof(T))), "r"(bytes)
               : "memory");
#else
  *to = valid ? *from : T();
#endif
}

// Closes a group of copies.
__device__ __forceinline__ void copy_async_commit() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most GROUPS_LEFT of this thread's latest groups are under way.
template <int GROUPS_LEFT>
__device__ __forceinline__ void copy_async_wait() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(GROUPS_LEFT) : "memory");
#endif
}

// binary16 and float, rounding to nearest even. Written out, so that no header of the CUDA toolkit is needed.
__device__ __forceinline__ float half_to_float(unsigned short bits) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
}

__device__ __forceinline__ unsigned short float_to_half(float value) {
  unsigned short bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}

#if __CUDA_ARCH__ >= 800
// Four matrices of 8 rows of 16 bytes, whose addresses lanes 0-7, 8-15, 16-23, 24-31 hold: lane l gets word l % 4 of row
// l / 4 of each. All lanes of a warp together.
__device__ __forceinline__ void load_matrices(unsigned (&words)[4], const void* row) {
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(address)
               : "memory");
}

// The same, of matrices of 16-bit elements that are transposed on the way.
__device__ __forceinline__ void load_matrices_turned(unsigned (&words)[4], const void* row) {
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(address)
               : "memory");
}

// sum += a * b for matrices of 16 x 16 by 16 x 8 halves, or 16 x 8 by 8 x 8 TF32, as fragments; all lanes together.
#define NPCONV_MMA(name, shape_and_types)                                                                     \
  __device__ __forceinline__ void name(float(&sum)[4], const unsigned(&a)[4], const unsigned(&b)[2]) {         \
    asm("mma.sync.aligned." shape_and_types " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])                                              \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                                  \
  }
NPCONV_MMA(multiply_matrices_f16, "m16n8k16.row.col.f32.f16.f16.f32")
NPCONV_MMA(multiply_matrices_bf16, "m16n8k16.row.col.f32.bf16.bf16.f32")
NPCONV_MMA(multiply_matrices_tf32, "m16n8k8.row.col.f32.tf32.tf32.f32")
#undef NPCONV_MMA

// The nearest number with 11 significant bits, halves away from zero.
__device__ __forceinline__ unsigned float_to_tf32(float value) {
  unsigned bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
  return bits;
}
#endif

#endif
