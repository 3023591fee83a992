// Runs unchanged CUDA kernels on the CPU: a fibre for every thread of a block, one block after the other.
//
// Deterministic: a warp runs until all of it waits for the block, then the next one does. It shows results, indexing, barriers that
// threads miss, shuffles with lanes that are gone, shared memory that is read before it is written (it is NaN at the start of a
// block), and, in one order of threads or the other, most missing barriers. It cannot show speed, coalescing, occupancy, what is
// approximate on a device, or races between blocks.
#pragma once
#include <csetjmp>
#include <cstdint>
#include <cstring>
#include <math.h>
#include <ucontext.h>
#include <utility>

struct uint3 { unsigned x, y, z; };
struct dim3 { unsigned x = 1, y = 1, z = 1; };
static uint3 threadIdx, blockIdx;
static dim3 blockDim, gridDim;
static constexpr int warpSize = 32;

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__
#define __shared__ static __attribute__((section("cuda_shared")))

namespace emulator {

enum class State { running, at_block_barrier, at_warp_barrier, finished };

struct Fibre {
  ucontext_t start;
  jmp_buf place;
  bool started;
  State state;
  int shuffles;
  int line;  // of the barrier where it waits
  char *stack;
};

constexpr unsigned most_threads = 1024;
constexpr size_t stack_size = 1 << 16;
static Fibre fibres[most_threads];  // they live on from block to block, and from launch to launch
static ucontext_t scheduler;
static jmp_buf scheduler_place;
static unsigned current;
static void (*body)(const void *);
static const void *body_data;
static uint64_t exchange[2][most_threads];
alignas(64) static char dynamic_shared[48 * 1024];
__attribute__((used)) __shared__ char never_empty[8];
extern "C" char __start_cuda_shared[], __stop_cuda_shared[];

static void pause(State state, int line = 0) {
  fibres[current].state = state, fibres[current].line = line;
  if (_setjmp(fibres[current].place) == 0) _longjmp(scheduler_place, 1);
}

static void live() {
  for (;;) {
    body(body_data);
    pause(State::finished);
  }
}

// The first switch to a fibre goes by its context, later ones by long jumps, which need no system call.
static void run(unsigned fibre) {
  Fibre &f = fibres[current = fibre];
  threadIdx = {fibre % blockDim.x, fibre / blockDim.x % blockDim.y, fibre / (blockDim.x * blockDim.y)};
  if (_setjmp(scheduler_place) != 0) return;
  if (f.started) _longjmp(f.place, 1);
  f.started = true;
  if (f.stack == nullptr) f.stack = new char[stack_size];
  getcontext(&f.start);
  f.start.uc_stack.ss_sp = f.stack, f.start.uc_stack.ss_size = stack_size, f.start.uc_link = nullptr;
  makecontext(&f.start, live, 0);
  setcontext(&f.start);
}

// Runs the fibres [first, end) of a warp as far as they get. Returns 2 when they wait for a lane that is gone.
static int run_warp(unsigned first, unsigned end, bool descending) {
  for (;;) {
    unsigned waiting = 0, finished = 0;
    for (unsigned k = first; k < end; ++k) {
      const unsigned fibre = descending ? end - 1 - (k - first) : k;
      if (fibres[fibre].state == State::running) run(fibre);
      waiting += fibres[fibre].state == State::at_warp_barrier;
      finished += fibres[fibre].state == State::finished;
    }
    if (waiting == 0 || waiting + finished < end - first) return 0;
    if (finished > 0) return 2;
    for (unsigned i = first; i < end; ++i) fibres[i].state = State::running;
  }
}

// Returns 0; 1 when threads wait at different barriers for ever; 2 when a warp waits for a lane that is gone.
static int run_block(unsigned count, bool descending) {
  std::memset(__start_cuda_shared, 0xff, __stop_cuda_shared - __start_cuda_shared);
  for (unsigned i = 0; i < count; ++i) fibres[i].state = State::running, fibres[i].shuffles = 0;
  for (;;) {
    const unsigned warps = (count + warpSize - 1) / warpSize;
    for (unsigned k = 0; k < warps; ++k) {
      const unsigned first = (descending ? warps - 1 - k : k) * warpSize, end = first + warpSize;
      if (const int failure = run_warp(first, end < count ? end : count, descending)) return failure;
    }
    unsigned finished = 0, waiting = 0;
    int line = 0;
    for (unsigned i = 0; i < count; ++i) {
      finished += fibres[i].state == State::finished;
      if (fibres[i].state != State::at_block_barrier) continue;
      if (waiting++ > 0 && fibres[i].line != line) return 1;
      line = fibres[i].line;
    }
    if (finished == count) return 0;
    if (finished + waiting < count) return 1;
    for (unsigned i = 0; i < count; ++i)
      if (fibres[i].state == State::at_block_barrier) fibres[i].state = State::running;
  }
}

template <class Kernel>
int run_grid(const unsigned *grid, const unsigned *block, unsigned dynamic, bool descending, const Kernel &kernel) {
  gridDim = {grid[0], grid[1], grid[2]}, blockDim = {block[0], block[1], block[2]};
  const unsigned count = block[0] * block[1] * block[2];
  if (count == 0 || count > most_threads) return 3;
  body = [](const void *data) { (*static_cast<const Kernel *>(data))(); };
  body_data = &kernel;
  for (unsigned z = 0; z < grid[2]; ++z)
    for (unsigned y = 0; y < grid[1]; ++y)
      for (unsigned x = 0; x < grid[0]; ++x) {
        blockIdx = {x, y, z};
        std::memset(dynamic_shared, 0xff, dynamic);
        const int failure = run_block(count, descending);
        if (failure == 0) continue;
        for (Fibre &f : fibres) f.started = false;  // what they were doing is given up
        return failure;
      }
  return 0;
}

// A kernel's parameters: "Pd" is a pointer to double, "Kd" to const double, "d" a double.
template <class T> struct Code { static constexpr const char *text = "?"; };
template <> struct Code<double> { static constexpr const char *text = "d"; };
template <> struct Code<float> { static constexpr const char *text = "f"; };
template <> struct Code<int> { static constexpr const char *text = "i"; };
template <> struct Code<unsigned> { static constexpr const char *text = "I"; };
template <> struct Code<long long> { static constexpr const char *text = "q"; };
template <class T> struct Parameter {
  static void write(char *&out) { *out++ = *Code<T>::text, *out++ = ' '; }
};
template <class T> struct Parameter<T *> {
  static void write(char *&out) { *out++ = 'P', Parameter<T>::write(out); }
};
template <class T> struct Parameter<const T *> {
  static void write(char *&out) { *out++ = 'K', Parameter<T>::write(out); }
};

template <class... T> const char *signature(void (*)(T...)) {
  static char text[3 * sizeof...(T) + 1], *end = text;
  if (end == text) (Parameter<T>::write(end), ...);
  return text;
}

template <class... T, size_t... I>
int launch(void (*kernel)(T...), const unsigned *grid, const unsigned *block, unsigned dynamic, bool descending, void **arguments,
           std::index_sequence<I...>) {
  return run_grid(grid, block, dynamic, descending, [=] { kernel(*static_cast<T *>(arguments[I])...); });
}

template <class... T>
int launch(void (*kernel)(T...), const unsigned *grid, const unsigned *block, unsigned dynamic, bool descending, void **arguments) {
  return launch(kernel, grid, block, dynamic, descending, arguments, std::index_sequence_for<T...>());
}

// One barrier is enough, as the next shuffle uses the other half of the exchange.
template <class T> T shuffle(T value, unsigned lane) {
  static_assert(sizeof(T) <= sizeof(uint64_t), "one register pair at most");
  uint64_t *slots = exchange[fibres[current].shuffles++ % 2], *place = slots + current / warpSize * warpSize + lane;
  std::memcpy(&slots[current], &value, sizeof value);
  pause(State::at_warp_barrier);
  T other;
  std::memcpy(&other, place, sizeof other);
  return other;
}

inline unsigned lane() { return current % warpSize; }

}  // namespace emulator

static inline void __syncthreads(int line = __builtin_LINE()) { emulator::pause(emulator::State::at_block_barrier, line); }
static inline void __syncwarp(unsigned = 0xffffffffu) { emulator::pause(emulator::State::at_warp_barrier); }
template <class T> T __shfl_sync(unsigned, T value, int lane) { return emulator::shuffle(value, lane % warpSize); }
template <class T> T __shfl_xor_sync(unsigned, T value, int mask) { return emulator::shuffle(value, emulator::lane() ^ mask); }
template <class T> T __shfl_down_sync(unsigned, T value, unsigned delta) {
  const unsigned from = emulator::lane() + delta;
  return emulator::shuffle(value, from < warpSize ? from : emulator::lane());
}
template <class T> T __shfl_up_sync(unsigned, T value, unsigned delta) {
  const unsigned lane = emulator::lane();
  return emulator::shuffle(value, delta <= lane ? lane - delta : lane);
}
static inline unsigned __ballot_sync(unsigned, int predicate) {
  unsigned mask = 0;
  for (int lane = 0; lane < warpSize; ++lane) mask |= unsigned(__shfl_sync(0xffffffffu, predicate != 0, lane)) << lane;
  return mask;
}
static inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
static inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) == 0xffffffffu; }
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline double __dadd_rn(double x, double y) { return x + y; }
static inline double __dmul_rn(double x, double y) { return x * y; }
static inline double __longlong_as_double(long long x) {
  double y;
  std::memcpy(&y, &x, sizeof y);
  return y;
}
static inline float __int_as_float(int x) {
  float y;
  std::memcpy(&y, &x, sizeof y);
  return y;
}
template <class T> T __ldg(const T *place) { return *place; }
