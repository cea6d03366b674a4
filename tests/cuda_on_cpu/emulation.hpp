// CUDA's execution model on a CPU, for tests: every thread of a block is a fiber, every barrier a rendezvous.
//
// A kernel's source is compiled by a C++ compiler behind this header, without a change, and executed one block at a
// time. A fiber runs until it must wait for others, then another one is chosen: in random, ascending or descending
// order. What is caught: missing or divergent barriers (shared memory is poisoned, and whatever a fiber has not
// written yet holds poison), accesses outside an array or outside shared memory (arrays lie between pages that may not
// be touched, operands are read-only), undefined behaviour (traps of -fsanitize=undefined), asynchronous copies that
// are used before they were waited for, warp operations whose lanes do not meet. What is not: the order in which
// a GPU makes writes visible without a barrier, bank conflicts, and anything about time.
#pragma once

#include <csetjmp>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sys/mman.h>
#include <type_traits>
#include <unistd.h>
#include <utility>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__ __restrict
#define __constant__ static const
// Every block starts with poison in this section; see `run_block`.
#define __shared__ static __attribute__((section("cuda_shared"), aligned(16)))

struct dim3 {
  unsigned x, y, z;
};

namespace emulation {

constexpr int MOST_THREADS = 1024, WARP = 32;
constexpr size_t STACK = 64 * 1024;
constexpr unsigned char POISON = 0xff;  // NaN in every floating-point format, -1 in every integer

enum class Wait { nothing, block, warp };

struct Copy {
  void* to;
  const void* from;
  int bytes, filled, group;
};

struct Fiber {
#if defined(__x86_64__)
  void* stack_pointer;
#else
  ucontext_t context;
#endif
  dim3 thread;
  bool done;
  Wait wait;
  int line;
  unsigned mask;
  unsigned char value[32];
  // Asynchronous copies that were asked for and not waited for.
  Copy copies[512];
  int pending, groups;
};

struct Block {
  void (*body)();
  Fiber* fibers;
  int threads, current;
  char* stacks;
  uint64_t random;
  int order;
  unsigned char* dynamic;
  size_t dynamic_bytes;
  char message[400];
  sigjmp_buf escape;
#if defined(__x86_64__)
  void* scheduler;
#else
  ucontext_t scheduler;
#endif
};

static Block block;
static dim3 grid_size, block_size, block_index;

inline uint64_t draw() {  // xorshift64*
  uint64_t& s = block.random;
  s ^= s >> 12, s ^= s << 25, s ^= s >> 27;
  return s * 2685821657736338717ull;
}

inline Fiber& self() { return block.fibers[block.current]; }

// Ends the launch with an error, from wherever it is.
[[noreturn]] inline void fail(const char* what, int line) {
  const dim3 t = self().thread, b = block_index;
  snprintf(block.message, sizeof block.message, "%s (line %d, block %u %u %u, thread %u %u %u)", what, line, b.x, b.y, b.z,
           t.x, t.y, t.z);
  siglongjmp(block.escape, 1);
}

// ---- fibers ---------------------------------------------------------------------------------------------------------

#if defined(__x86_64__)
extern "C" void emulation_switch(void** save, void* to);
asm(R"(
.text
.local emulation_switch
.type emulation_switch, @function
emulation_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulation_switch, .-emulation_switch
)");
inline void pause_fiber() { emulation_switch(&self().stack_pointer, block.scheduler); }
inline void resume(Fiber& f) { emulation_switch(&block.scheduler, f.stack_pointer); }
#else
inline void pause_fiber() { swapcontext(&self().context, &block.scheduler); }
inline void resume(Fiber& f) { swapcontext(&block.scheduler, &f.context); }
#endif

inline void entry() {
  block.body();
  self().done = true;
  pause_fiber();
  abort();  // never resumed
}

inline void prepare(int index) {
  Fiber& f = block.fibers[index];
  char* top = block.stacks + size_t(index + 1) * STACK;
#if defined(__x86_64__)
  void** sp = reinterpret_cast<void**>(top) - 1;
  *sp = nullptr;  // where `entry` would return to; the stack is then aligned as at a call
  *--sp = reinterpret_cast<void*>(&entry);
  sp -= 6;
  f.stack_pointer = sp;
#else
  getcontext(&f.context);
  f.context.uc_stack.ss_sp = top - STACK;
  f.context.uc_stack.ss_size = STACK;
  f.context.uc_link = nullptr;
  makecontext(&f.context, entry, 0);
#endif
  f.thread = {index % block_size.x, index / block_size.x % block_size.y, index / (block_size.x * block_size.y)};
  f.done = false, f.wait = Wait::nothing, f.pending = f.groups = 0;
}

// ---- asynchronous copies --------------------------------------------------------------------------------------------

inline void perform(const Copy& c) {
  memset(c.to, 0, c.bytes);
  memcpy(c.to, c.from, c.filled);
}

inline void copy_async(void* to, const void* from, int bytes, int filled, int line) {
  if (reinterpret_cast<uintptr_t>(to) % bytes || (filled && reinterpret_cast<uintptr_t>(from) % bytes))
    fail("an asynchronous copy is not aligned", line);
  Fiber& f = self();
  const Copy c{to, from, bytes, filled, f.groups};
  // The copy may happen at once or as late as its wait; both must give the same.
  if (draw() & 1) return perform(c);
  if (f.pending == 512) fail("too many asynchronous copies", line);
  memset(to, POISON, bytes);
  f.copies[f.pending++] = c;
}

inline void commit_copies() { self().groups++; }

inline void wait_copies(int groups_left) {
  Fiber& f = self();
  int kept = 0;
  for (int i = 0; i < f.pending; i++) {
    if (f.copies[i].group < f.groups - groups_left)
      perform(f.copies[i]);
    else
      f.copies[kept++] = f.copies[i];
  }
  f.pending = kept;
}

// ---- barriers and warps ---------------------------------------------------------------------------------------------

inline void wait_for(Wait kind, int line) {
  Fiber& f = self();
  f.wait = kind, f.line = line;
  pause_fiber();
}

inline void barrier(int line) { wait_for(Wait::block, line); }

inline void warp_barrier(unsigned mask, int line) {
  self().mask = mask;
  wait_for(Wait::warp, line);
}

inline int lane_of(int index) { return index % WARP; }

template <class T>
T exchange(unsigned mask, T value, int source_lane, int line) {
  static_assert(sizeof(T) <= 16);
  Fiber& f = self();
  memcpy(f.value, &value, sizeof value);
  warp_barrier(mask, line);
  const int source = block.current / WARP * WARP + source_lane;
  T result = value;
  if (source < block.threads) {
    if (!(mask >> source_lane & 1)) fail("a warp operation reads a lane outside its mask", line);
    memcpy(&result, block.fibers[source].value, sizeof result);
  }
  warp_barrier(mask, line);
  return result;
}

template <class T>
T shuffle_down(unsigned mask, T value, unsigned delta, int line) {
  const int lane = lane_of(block.current), source = lane + int(delta);
  return exchange(mask, value, source < WARP ? source : lane, line);
}

template <class T>
T shuffle_xor(unsigned mask, T value, unsigned lanes, int line) {
  return exchange(mask, value, lane_of(block.current) ^ int(lanes), line);
}

template <class T>
T shuffle(unsigned mask, T value, int lane, int line) {
  return exchange(mask, value, lane & (WARP - 1), line);
}

// ---- tensor cores ---------------------------------------------------------------------------------------------------
// The tables of the PTX ISA, "Warp Level Matrix Instructions": which lane holds what of a matrix.

// What the lanes of this warp hold out to each other; they meet before and after it is read.
struct Offer {
  explicit Offer(const void* mine, size_t bytes, int line) : line(line) {
    memcpy(self().value, mine, bytes);
    if (block.threads % WARP) fail("a warp is not whole", line);
    warp_barrier(0xffffffffu, line);
  }
  ~Offer() { warp_barrier(0xffffffffu, line); }
  template <class T>
  T of(int lane) const {
    T value;
    memcpy(&value, block.fibers[block.current / WARP * WARP + lane].value, sizeof value);
    return value;
  }
  const int line;
};

inline void read_matrices(unsigned (&words)[4], const void* row, bool turned, int line) {
  if (reinterpret_cast<uintptr_t>(row) % 16) fail("a row of ldmatrix is not aligned to 16 bytes", line);
  const Offer rows(&row, sizeof row, line);
  const int lane = lane_of(block.current);
  for (int i = 0; i < 4; i++) {
    unsigned short halves[2];
    for (int h = 0; h < 2; h++) {
      const int down = turned ? lane % 4 * 2 + h : lane / 4, across = turned ? lane / 4 : lane % 4 * 2 + h;
      halves[h] = rows.of<const unsigned short*>(i * 8 + down)[across];
    }
    words[i] = halves[0] | unsigned(halves[1]) << 16;
  }
}

struct Fragments {
  unsigned a[4], b[2];
};

// As tensor cores were found to round (M. Fasi et al., PeerJ Computer Science 7:e330).
inline float towards_zero(double exact) {
  const float nearest = float(exact);
  return __builtin_fabs(double(nearest)) > __builtin_fabs(exact) ? __builtin_nextafterf(nearest, 0.0f) : nearest;
}

// PER_WORD elements of a fragment lie in a word; `number` reads one of them.
template <int PER_WORD, class Number>
__attribute__((optimize("O2"))) void multiply_matrices(float (&sum)[4], const unsigned (&a)[4], const unsigned (&b)[2],
                                                       int line, const Number& number) {
  Fragments mine;
  memcpy(mine.a, a, sizeof a), memcpy(mine.b, b, sizeof b);
  const Offer fragments(&mine, sizeof mine, line);
  // Rows g and g + 8 of A lie in the lanes 4 g to 4 g + 3, column c of B in the lanes 4 c to 4 c + 3; word w of k is in the
  // first registers of the lanes for w < 4, in those behind for the others.
  const int lane = lane_of(block.current);
  for (int c = 0; c < 2; c++) {
    double column[8 * PER_WORD];
    for (int k = 0; k < 8 * PER_WORD; k++)
      column[k] = number(fragments.of<Fragments>((lane % 4 * 2 + c) * 4 + k / PER_WORD % 4).b[k / PER_WORD / 4], k % PER_WORD);
    for (int down = 0; down < 2; down++) {
      double exact = sum[down * 2 + c];
      for (int k = 0; k < 8 * PER_WORD; k++) {
        const int word = k / PER_WORD;
        const Fragments of_row = fragments.of<Fragments>(lane / 4 * 4 + word % 4);
        exact += number(of_row.a[down + word / 4 * 2], k % PER_WORD) * column[k];
      }
      sum[down * 2 + c] = towards_zero(exact);
    }
  }
}

// Releases a rendezvous that is complete; false where nothing can go on.
inline bool release() {
  bool all = true;
  int line = 0;
  for (int i = 0; i < block.threads; i++) {
    const Fiber& f = block.fibers[i];
    if (f.done) continue;
    if (f.wait != Wait::block) {
      all = false;
    } else if (line && f.line != line) {
      block.current = i;
      fail("threads of a block wait at different barriers", f.line);
    } else {
      line = f.line;
    }
  }
  if (all && line) {
    for (int i = 0; i < block.threads; i++) block.fibers[i].wait = Wait::nothing;
    return true;
  }
  // One warp goes on, so that it runs as far ahead of the others as they let it.
  const int warps = (block.threads + WARP - 1) / WARP, start = block.order == 0 ? int(draw() % warps) : 0;
  for (int w = 0; w < warps; w++) {
    const int first = (block.order == 2 ? warps - 1 - w : (start + w) % warps) * WARP;
    for (int i = first; i < first + WARP && i < block.threads; i++) {
      const Fiber& f = block.fibers[i];
      if (f.done || f.wait != Wait::warp) continue;
      bool met = true;
      for (int j = first; j < first + WARP && j < block.threads; j++) {
        const Fiber& other = block.fibers[j];
        if (!(f.mask >> (j - first) & 1)) continue;
        if (other.done) block.current = i, fail("a warp operation waits for a thread that has ended", f.line);
        met &= other.wait == Wait::warp && other.line == f.line && other.mask == f.mask;
      }
      if (!met) continue;
      const unsigned mask = f.mask;
      for (int j = first; j < first + WARP && j < block.threads; j++)
        if (mask >> (j - first) & 1) block.fibers[j].wait = Wait::nothing;
      return true;
    }
  }
  return false;
}

extern "C" unsigned char __start_cuda_shared[] __attribute__((weak));
extern "C" unsigned char __stop_cuda_shared[] __attribute__((weak));

inline void run_block() {
  if (__start_cuda_shared) memset(__start_cuda_shared, POISON, __stop_cuda_shared - __start_cuda_shared);
  if (block.dynamic_bytes) memset(block.dynamic, POISON, block.dynamic_bytes);
  for (int i = 0; i < block.threads; i++) prepare(i);
  int order[MOST_THREADS];
  for (;;) {
    for (int i = 0; i < block.threads; i++) order[i] = block.order == 2 ? block.threads - 1 - i : i;
    for (int i = block.threads - 1; block.order == 0 && i > 0; i--) std::swap(order[i], order[draw() % (i + 1)]);
    int left = 0;
    for (int i = 0; i < block.threads; i++) {
      Fiber& f = block.fibers[order[i]];
      if (f.done) continue;
      left++;
      if (f.wait != Wait::nothing) continue;
      block.current = order[i];
      resume(f);
    }
    if (!left) return;
    bool waiting = true;
    for (int i = 0; i < block.threads; i++) waiting &= block.fibers[i].done || block.fibers[i].wait != Wait::nothing;
    left = 0;
    for (int i = 0; i < block.threads; i++) left += !block.fibers[i].done;
    // Warps are released as soon as they can, so that their lanes run ahead of other warps; a block when all wait.
    if (left && waiting && !release()) fail("a deadlock: no rendezvous can complete", self().line);
  }
}

// ---- launch ---------------------------------------------------------------------------------------------------------

struct Argument {
  void* data;    // of a value, or of an array's elements
  size_t bytes;  // of an array; 0 for a value
  int is_array;
};

struct Launch {
  dim3 grid, block;
  size_t dynamic_bytes, static_limit;
  uint64_t seed;
  int order;  // 0 random, 1 ascending, 2 descending
  int count;
  Argument* arguments;
  char message[512];
};

// Memory between stretches of addresses that may not be touched. It ends where the second begins, as near as `bytes` and
// the alignment of `like` allow.
struct Fenced {
  static constexpr size_t FENCE = size_t(16) << 20;
  char *base, *data;
  size_t inside, bytes;

  void map(size_t size, uintptr_t like) {
    const size_t page = size_t(sysconf(_SC_PAGESIZE));
    bytes = size;
    inside = (bytes + 15 + page) / page * page;
    base = static_cast<char*>(
        mmap(nullptr, inside + 2 * FENCE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (base == MAP_FAILED) abort();
    mprotect(base + FENCE, inside, PROT_READ | PROT_WRITE);
    memset(base + FENCE, POISON, inside);
    // CUDA aligns arrays to 256 bytes; a view may begin anywhere. A kernel may count on 16 bytes at most, so what the
    // caller's array has of those is kept.
    data = base + FENCE + inside - bytes;
    data -= (reinterpret_cast<uintptr_t>(data) - like % 16) % 16;
  }
  void protect() { mprotect(base + FENCE, inside, PROT_READ); }
  // Whether what lies around the data was written to.
  bool damaged() const {
    for (const char* p = base + FENCE; p < base + FENCE + inside; p++)
      if ((p < data || p >= data + bytes) && static_cast<unsigned char>(*p) != POISON) return true;
    return false;
  }
  void unmap() { munmap(base, inside + 2 * FENCE); }
};

static void on_signal(int number, siginfo_t* info, void*) {
  char what[120];
  // What -fsanitize=undefined traps with depends on the processor.
  const char* name = number == SIGILL || number == SIGTRAP ? "undefined behaviour"
                     : number == SIGFPE                    ? "an integer division by zero"
                                                           : "an access outside an array";
  snprintf(what, sizeof what, "%s, address %p", name, info->si_addr);
  fail(what, 0);
}

template <class P>
struct IsOperand : std::false_type {};
template <class T>
struct IsOperand<const T*> : std::true_type {};

constexpr int MOST_ARGUMENTS = 16;
static void* values[MOST_ARGUMENTS];

template <class F>
struct Kernel;

template <class... P>
struct Kernel<void (*)(P...)> {
  static_assert(sizeof...(P) <= MOST_ARGUMENTS);
  static inline void (*function)(P...);

  template <size_t... I>
  static void call(std::index_sequence<I...>) {
    function(*static_cast<std::remove_reference_t<P>*>(values[I])...);
  }
  static void body() { call(std::index_sequence_for<P...>{}); }

  static int run(void (*kernel)(P...), Launch* launch) {
    const bool pointer[] = {std::is_pointer_v<P>..., false};
    const bool operand[] = {IsOperand<P>::value..., false};
    const size_t sizes[] = {sizeof(P)..., 0};
    const int count = sizeof...(P);
    if (launch->count != count) {
      snprintf(launch->message, sizeof launch->message, "the kernel takes %d arguments, got %d", count, launch->count);
      return 1;
    }
    const size_t statics = __stop_cuda_shared - __start_cuda_shared;
    if (statics + launch->dynamic_bytes > launch->static_limit) {
      snprintf(launch->message, sizeof launch->message, "%zu bytes of shared memory", statics + launch->dynamic_bytes);
      return 1;
    }
    Fenced arrays[MOST_ARGUMENTS];
    void* addresses[MOST_ARGUMENTS];
    for (int i = 0; i < count; i++) {
      const Argument& a = launch->arguments[i];
      // A null pointer is a value of eight zero bytes.
      if ((a.is_array && !pointer[i]) || (!a.is_array && a.bytes != sizes[i])) {
        snprintf(launch->message, sizeof launch->message, "argument %d has %zu bytes, the kernel takes %zu%s", i,
                 a.bytes, sizes[i], pointer[i] ? ", a pointer" : "");
        return 1;
      }
    }
    for (int i = 0; i < count; i++) {
      const Argument& a = launch->arguments[i];
      values[i] = a.data;
      if (!a.is_array) continue;
      arrays[i].map(a.bytes, reinterpret_cast<uintptr_t>(a.data));
      if (a.bytes) memcpy(arrays[i].data, a.data, a.bytes);
      if (operand[i]) arrays[i].protect();
      addresses[i] = arrays[i].data;
      values[i] = &addresses[i];
    }
    function = kernel;
    const int failed = blocks(launch);
    int damaged = -1;
    for (int i = 0; i < count; i++) {
      const Argument& a = launch->arguments[i];
      if (!a.is_array) continue;
      if (!operand[i]) {
        if (a.bytes) memcpy(a.data, arrays[i].data, a.bytes);
        if (arrays[i].damaged()) damaged = i;
      }
      arrays[i].unmap();
    }
    if (failed) memcpy(launch->message, block.message, sizeof block.message);
    if (!failed && damaged >= 0)
      snprintf(launch->message, sizeof launch->message, "argument %d was written to outside its elements", damaged);
    return failed || damaged >= 0;
  }

  static int blocks(Launch* launch) {
    grid_size = launch->grid, block_size = launch->block;
    block.body = body;
    block.threads = int(block_size.x * block_size.y * block_size.z);
    block.random = launch->seed * 2 + 1;
    block.order = launch->order;
    Fenced dynamic;
    dynamic.map(launch->dynamic_bytes, 0);
    block.dynamic = reinterpret_cast<unsigned char*>(dynamic.data);
    block.dynamic_bytes = launch->dynamic_bytes;
    if (!block.fibers) {
      block.fibers = static_cast<Fiber*>(malloc(MOST_THREADS * sizeof(Fiber)));
      block.stacks = static_cast<char*>(
          mmap(nullptr, MOST_THREADS * STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    }
    static char spare[64 * 1024];  // a stack for the handler, should a fiber's be what is used up
    stack_t alternative{}, old_stack;
    alternative.ss_sp = spare, alternative.ss_size = sizeof spare;
    sigaltstack(&alternative, &old_stack);
    const int numbers[] = {SIGSEGV, SIGBUS, SIGILL, SIGTRAP, SIGFPE};
    struct sigaction action{}, old[5];
    action.sa_sigaction = on_signal;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    for (int i = 0; i < 5; i++) sigaction(numbers[i], &action, &old[i]);
    const int failed = sigsetjmp(block.escape, 1);
    if (!failed) {
      const uint64_t total = uint64_t(grid_size.x) * grid_size.y * grid_size.z;
      for (uint64_t i = 0; i < total; i++) {
        // Blocks run in no order that a kernel may count on.
        const uint64_t at = launch->order == 1 ? i : total - 1 - i;
        block_index = {unsigned(at % grid_size.x), unsigned(at / grid_size.x % grid_size.y),
                       unsigned(at / grid_size.x / grid_size.y)};
        run_block();
      }
    }
    for (int i = 0; i < 5; i++) sigaction(numbers[i], &old[i], nullptr);
    sigaltstack(&old_stack, nullptr);
    dynamic.unmap();
    return failed;
  }
};

}  // namespace emulation

#define threadIdx (emulation::self().thread)
#define blockIdx (emulation::block_index)
#define blockDim (emulation::block_size)
#define gridDim (emulation::grid_size)
#define warpSize (emulation::WARP)
#define __syncthreads() emulation::barrier(__LINE__)
#define __syncwarp() emulation::warp_barrier(0xffffffffu, __LINE__)
#define __shfl_down_sync(mask, value, delta) emulation::shuffle_down(mask, value, delta, __LINE__)
#define __shfl_xor_sync(mask, value, lanes) emulation::shuffle_xor(mask, value, lanes, __LINE__)
#define __shfl_sync(mask, value, lane) emulation::shuffle(mask, value, lane, __LINE__)

template <class T>
inline T __ldg(const T* p) {
  return *p;
}
inline float __uint_as_float(unsigned bits) {
  float value;
  memcpy(&value, &bits, 4);
  return value;
}
inline unsigned __float_as_uint(float value) {
  unsigned bits;
  memcpy(&bits, &value, 4);
  return bits;
}
inline float fmaf(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline double fma(double a, double b, double c) { return __builtin_fma(a, b, c); }

// What ptx.cuh holds for a GPU. Its guard is defined here, so that the source's own is passed over.
#define NPCONV_PTX_CUH
#define DYNAMIC_SHARED(bytes) unsigned char* bytes = emulation::block.dynamic
#define copy_async_element(to, from, valid) \
  emulation::copy_async(to, from, int(sizeof *(to)), (valid) ? int(sizeof *(to)) : 0, __LINE__)
#define copy_async_commit() emulation::commit_copies()
template <int GROUPS_LEFT>
inline void copy_async_wait() {
  emulation::wait_copies(GROUPS_LEFT);
}

// binary16, without the compiler's own type for it, which not all versions have.
inline float half_to_float(unsigned short bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  const float sign = bits >> 15 ? -1.0f : 1.0f;
  if (exponent == 31) return fraction ? __builtin_nanf("") : sign * __builtin_inff();
  return sign * (exponent ? __builtin_ldexpf(1024 + fraction, exponent - 25) : __builtin_ldexpf(fraction, -24));
}
inline unsigned short float_to_half(float value) {
  const unsigned sign = __float_as_uint(value) >> 31 << 15;
  const float size = __builtin_fabsf(value);
  if (size != size) return 0x7e00;
  if (size >= 65520) return static_cast<unsigned short>(sign | 0x7c00);
  // In units of the last place, where `nearbyint` rounds to even; a carry goes on into the exponent.
  const int exponent = size < 0x1p-14f ? -15 : __builtin_ilogbf(size);
  const int units = int(__builtin_nearbyintf(__builtin_ldexpf(size, exponent == -15 ? 24 : 10 - exponent)));
  return static_cast<unsigned short>(sign | (exponent == -15 ? units : (exponent + 14) * 1024 + units));
}

#define load_matrices(words, row) emulation::read_matrices(words, row, false, __LINE__)
#define load_matrices_turned(words, row) emulation::read_matrices(words, row, true, __LINE__)

struct HalfOf {
  float operator()(unsigned word, int half) const {
    static float table[65536];
    static bool filled = false;
    for (int i = 0; !filled && i < 65536; i++) table[i] = half_to_float(static_cast<unsigned short>(i));
    filled = true;
    return table[word >> 16 * half & 0xffff];
  }
};
struct UpperHalfOf {
  float operator()(unsigned word, int half) const { return __uint_as_float((word >> 16 * half & 0xffff) << 16); }
};
struct Tf32Of {
  float operator()(unsigned word, int) const {
    if (word & 0x1fff) emulation::fail("an operand is not a TF32", 0);
    return __uint_as_float(word);
  }
};
#define multiply_matrices_f16(sum, a, b) emulation::multiply_matrices<2>(sum, a, b, __LINE__, HalfOf())
#define multiply_matrices_bf16(sum, a, b) emulation::multiply_matrices<2>(sum, a, b, __LINE__, UpperHalfOf())
#define multiply_matrices_tf32(sum, a, b) emulation::multiply_matrices<1>(sum, a, b, __LINE__, Tf32Of())

// 11 significant bits, halves away from zero; what lies too far from zero becomes infinite, and a NaN one of TF32.
inline unsigned float_to_tf32(float value) {
  if (value != value) return 0x7fffe000;
  const unsigned bits = __float_as_uint(value);
  return (bits & 0x7f800000) == 0x7f800000 ? bits : (bits + 0x1000) & ~0x1fffu;
}
