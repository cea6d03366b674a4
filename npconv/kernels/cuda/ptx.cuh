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

#endif
