#include "simt.h"

#include <setjmp.h>
#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <vector>

namespace emulation {

[[noreturn]] void stop(const char* why) {
  std::fprintf(stderr, "emulated GPU: %s\n", why);
  std::abort();
}

namespace {

constexpr std::size_t kStackBytes = 64 << 10;
constexpr int kMostShared = 232448, kSharedUnasked = 48 << 10;

enum class Waits { no, for_block, for_warp };

// Started once by its context, which costs calls of the system; jumps from then on.
struct Fiber {
  std::unique_ptr<char[]> stack;
  jmp_buf place;
  bool started = false;
  Waits waits;
  bool done;
  std::uint32_t waits_for_block, waits_for_warp;
  std::deque<std::vector<Copy>> groups;  // the youngest is not ended yet
};

struct Machine {
  std::mutex mutex;
  std::deque<Fiber> fibers;  // which stay where they are
  std::vector<char> shared;
  std::vector<unsigned char> given = std::vector<unsigned char>(1024 * kLaneBytes);
  jmp_buf scheduler;
  Place place{};
  void (*body)(void*) = nullptr;
  void* closure = nullptr;
  const void* kernel = nullptr;  // the one that runs
  std::set<const void*> run;
  std::uint64_t blocks = 0, first_of_launch = 0;
  Listener listener{};
  std::map<const void*, int> allowed;
};

Machine& machine() {
  static auto* const made = new Machine;
  return *made;
}

Fiber* fiber_that_runs = nullptr;
Fiber& running() { return *fiber_that_runs; }

void give_way(Fiber& fiber) {
  if (_setjmp(fiber.place) == 0) _longjmp(machine().scheduler, 1);
}

void wait(Waits what) {
  Fiber& fiber = running();
  fiber.waits = what;
  // Whoever waits for the block has waited for its warp.
  ++fiber.waits_for_warp;
  if (what == Waits::for_block) ++fiber.waits_for_block;
  give_way(fiber);
}

// A fiber is a thread of one block after the other.
void enter() {
  for (;;) {
    machine().body(machine().closure);
    running().done = true;
    give_way(running());
  }
}

void resume(Fiber& fiber) {
  fiber_that_runs = &fiber;
  if (_setjmp(machine().scheduler) != 0) return;
  if (fiber.started) _longjmp(fiber.place, 1);
  fiber.started = true;
  ucontext_t context;
  getcontext(&context);
  context.uc_stack.ss_sp = fiber.stack.get();
  context.uc_stack.ss_size = kStackBytes;
  context.uc_link = nullptr;
  makecontext(&context, enter, 0);
  setcontext(&context);
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
        resume(fiber);
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
    fiber.waits = Waits::no;
    fiber.done = false;
    fiber.waits_for_block = fiber.waits_for_warp = 0;
    fiber.groups.assign(1, {});
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

void copy_later(const Copy& copy) {
  std::memset(copy.to, 0xff, copy.bytes);
  running().groups.back().push_back(copy);
  if (machine().listener.left != nullptr) machine().listener.left(copy);
}
void end_copy_group() { running().groups.emplace_back(); }
void wait_for_copy_groups(int left) {
  auto& groups = running().groups;
  while (groups.size() > static_cast<std::size_t>(left) + 1) {
    for (const Copy& copy : groups.front()) {
      if (copy.from == nullptr) {
        std::memset(copy.to, 0, copy.bytes);
      } else {
        std::memcpy(copy.to, copy.from, copy.bytes);
      }
      if (machine().listener.arrived != nullptr) machine().listener.arrived(copy);
    }
    groups.pop_front();
  }
}

bool now(Moment& moment) {
  static const Machine& m = machine();
  if (m.kernel == nullptr) return false;
  const Fiber& fiber = running();
  moment = {m.blocks,       m.first_of_launch,      m.place.thread, fiber.waits_for_block,
            fiber.waits_for_warp, m.kernel};
  return true;
}
const std::set<const void*>& kernels_run() { return machine().run; }
bool is_own(const void* address) {
  const char* stack = running().stack.get();
  return address >= stack && address < stack + kStackBytes;
}
bool is_dynamic_shared(const void* address) {
  static const auto& shared = machine().shared;
  return address >= shared.data() && address < shared.data() + shared.size();
}
void listen(Listener listener) { machine().listener = listener; }

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
  m.run.insert(kernel);
  m.shared.resize(shared);
  m.first_of_launch = m.blocks + 1;
  while (m.fibers.size() < block.x) {
    m.fibers.emplace_back().stack = std::make_unique<char[]>(kStackBytes);
  }
  for (unsigned y = 0; y < grid.y; ++y) {
    for (unsigned x = 0; x < grid.x; ++x) {
      m.place.block = dim3(x, y, 0);
      ++m.blocks;
      m.kernel = kernel;
      run_block();
      m.kernel = nullptr;
    }
  }
  if (m.listener.ended != nullptr) m.listener.ended(kernel);
}

}  // namespace emulation
