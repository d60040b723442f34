#include "simt.h"

#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <vector>

namespace emulation {

namespace {

constexpr std::size_t kStackBytes = 64 << 10;
constexpr int kMostShared = 232448, kSharedUnasked = 48 << 10;

enum class Waits { no, for_block, for_warp };

struct Fiber {
  ucontext_t context;
  Waits waits;
  bool done;
};

struct Machine {
  std::mutex mutex;
  std::vector<Fiber> fibers;
  std::vector<char> stacks, shared;
  std::vector<unsigned char> given = std::vector<unsigned char>(1024 * kLaneBytes);
  ucontext_t scheduler;
  Place place{};
  void (*body)(void*) = nullptr;
  void* closure = nullptr;
  std::map<const void*, int> allowed;
};

Machine& machine() {
  static auto* const made = new Machine;
  return *made;
}

[[noreturn]] void stop(const char* why) {
  std::fprintf(stderr, "emulated GPU: %s\n", why);
  std::abort();
}

Fiber& running() { return machine().fibers[static_cast<std::size_t>(machine().place.thread)]; }

void wait(Waits what) {
  Fiber& fiber = running();
  fiber.waits = what;
  swapcontext(&fiber.context, &machine().scheduler);
}

void enter() {
  machine().body(machine().closure);
  running().done = true;
  swapcontext(&running().context, &machine().scheduler);
}

// Runs the threads of a warp until all are done or wait for the block; whether any has run.
bool run_warp(int first, int end) {
  auto& m = machine();
  bool any = false;
  for (;;) {
    int alive = 0, at_warp = 0, moved = 0;
    for (int t = end - 1; t >= first; --t) {
      Fiber& fiber = m.fibers[static_cast<std::size_t>(t)];
      if (!fiber.done && fiber.waits == Waits::no) {
        m.place.thread = t;
        swapcontext(&m.scheduler, &fiber.context);
        ++moved;
      }
      alive += !fiber.done;
      at_warp += !fiber.done && fiber.waits == Waits::for_warp;
    }
    any = any || moved;
    if (alive != 0 && at_warp == alive) {
      for (int t = first; t < end; ++t) {
        m.fibers[static_cast<std::size_t>(t)].waits = Waits::no;
      }
    } else if (moved == 0) {
      return any;
    }
  }
}

void run_block() {
  auto& m = machine();
  const int threads = m.place.threads;
  std::fill(m.shared.begin(), m.shared.end(), static_cast<char>(0xff));
  for (int t = 0; t < threads; ++t) {
    Fiber& fiber = m.fibers[static_cast<std::size_t>(t)];
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = m.stacks.data() + static_cast<std::size_t>(t) * kStackBytes;
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = nullptr;
    fiber.waits = Waits::no;
    fiber.done = false;
    makecontext(&fiber.context, enter, 0);
  }
  for (;;) {
    bool any = false;
    for (int first = (threads - 1) / 32 * 32; first >= 0; first -= 32) {
      any = run_warp(first, std::min(threads, first + 32)) || any;
    }
    int alive = 0, at_barrier = 0;
    for (int t = 0; t < threads; ++t) {
      const Fiber& fiber = m.fibers[static_cast<std::size_t>(t)];
      alive += !fiber.done;
      at_barrier += !fiber.done && fiber.waits == Waits::for_block;
    }
    if (alive == 0) return;
    if (at_barrier == alive) {
      for (int t = 0; t < threads; ++t) m.fibers[static_cast<std::size_t>(t)].waits = Waits::no;
    } else if (!any) {
      stop("some threads wait for a barrier that others never reach");
    }
  }
}

}  // namespace

const Place& place() { return machine().place; }
void* dynamic_shared_memory() { return machine().shared.data(); }
void wait_for_block() { wait(Waits::for_block); }
void wait_for_warp() { wait(Waits::for_warp); }

void give_to_warp(const void* bytes, std::size_t count) {
  auto& m = machine();
  if (count > kLaneBytes) stop("a lane gives more than kLaneBytes");
  std::memcpy(&m.given[static_cast<std::size_t>(m.place.thread) * kLaneBytes], bytes, count);
  wait_for_warp();
}
const void* given_by(int lane) {
  auto& m = machine();
  const int thread = m.place.thread / 32 * 32 + lane % 32;
  return &m.given[static_cast<std::size_t>(thread) * kLaneBytes];
}

cudaError_t allow_shared_memory(const void* kernel, int bytes) {
  if (bytes > kMostShared) return cudaErrorInvalidValue;
  machine().allowed[kernel] = bytes;
  return cudaSuccess;
}

void run(const void* kernel, dim3 grid, dim3 block, std::size_t shared, void (*body)(void*),
         void* closure) {
  auto& m = machine();
  const std::lock_guard<std::mutex> lock(m.mutex);
  const auto allowed = m.allowed.find(kernel);
  const int most = allowed == m.allowed.end() ? kSharedUnasked : allowed->second;
  if (block.x < 1 || block.x > 1024 || block.y != 1 || block.z != 1) stop("a block of no size");
  if (grid.x < 1 || grid.x > 0x7fffffffu || grid.y < 1 || grid.y > 65535 || grid.z != 1) {
    stop("a grid that no GPU takes");
  }
  if (shared > static_cast<std::size_t>(most)) stop("more shared memory than the kernel asked for");

  m.place = {0, static_cast<int>(block.x), dim3(), grid};
  m.body = body;
  m.closure = closure;
  m.shared.resize(shared);
  if (m.fibers.size() < block.x) {
    m.fibers.resize(block.x);
    m.stacks.resize(block.x * kStackBytes);
  }
  for (unsigned y = 0; y < grid.y; ++y) {
    for (unsigned x = 0; x < grid.x; ++x) {
      m.place.block = dim3(x, y, 0);
      run_block();
    }
  }
}

}  // namespace emulation
