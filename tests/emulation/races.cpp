// Finds races of emulated kernels that are watched (watch.h).
//
// Two accesses of a launch to the same memory, at least one of them a write, have to be those of
// one thread, or of a block whose two threads both waited at a barrier in between (a warp's, if
// they share one). And nobody may read what an asynchronous copy has yet to bring.
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <unordered_map>

#include "simt.h"
#include "watch.h"

namespace {

using emulation::Moment;

constexpr std::uintptr_t kGrain = 2;  // bytes: the smallest number that a kernel writes
constexpr std::uintptr_t kPage = 4096;

struct Access {
  std::uint64_t block = 0;  // 0: none
  int thread = 0;
  std::uint32_t waits_for_block = 0, waits_for_warp = 0;
  const void* code = nullptr;
};

// The last write, and two reads that nothing has come between, of two warps if there are two.
struct Cell {
  Access write, reads[2];
  bool on_its_way = false;
};
struct Page {
  Cell cells[kPage / kGrain];
};

std::unordered_map<std::uintptr_t, std::unique_ptr<Page>> pages;

Cell& cell_of(std::uintptr_t address) {
  static std::uintptr_t last_number = 0;
  static Page* last = nullptr;
  const std::uintptr_t number = address / kPage;
  if (last == nullptr || number != last_number) {
    auto& page = pages[number];
    if (page == nullptr) page = std::make_unique<Page>();
    last_number = number;
    last = page.get();
  }
  return last->cells[address % kPage / kGrain];
}

bool share_warp(const Access& a, const Access& b) { return a.thread / 32 == b.thread / 32; }

bool comes_before(const Access& earlier, const Access& later, std::uintptr_t address,
                  const Moment& moment) {
  if (earlier.block < moment.first_of_launch) return true;
  // Every block has its own shared memory, which is the same place for all of them.
  if (earlier.block != later.block) {
    return emulation::is_shared(reinterpret_cast<const void*>(address));
  }
  return earlier.thread == later.thread || earlier.waits_for_block < later.waits_for_block ||
         (share_warp(earlier, later) && earlier.waits_for_warp < later.waits_for_warp);
}

[[noreturn]] void report(const char* what, std::uintptr_t address, const Access& earlier,
                         const Access& later, const Moment& moment) {
  const auto first = static_cast<unsigned long long>(moment.first_of_launch);
  std::fprintf(stderr,
               "race: %s at %p in kernel %p: block %llu thread %d at %p, then block %llu thread %d "
               "at %p\n",
               what, reinterpret_cast<void*>(address), moment.kernel,
               static_cast<unsigned long long>(earlier.block) - first, earlier.thread, earlier.code,
               static_cast<unsigned long long>(later.block) - first, later.thread, later.code);
  std::exit(3);
}

void look_at(const void* at, std::size_t bytes, bool writes, const void* code,
             bool on_its_way = false) {
  Moment moment;
  if (!emulation::now(moment) || emulation::is_own(at)) return;
  const Access access{moment.block, moment.thread, moment.waits_for_block, moment.waits_for_warp,
                      code};
  const auto first = reinterpret_cast<std::uintptr_t>(at);
  for (std::uintptr_t address = first / kGrain * kGrain; address < first + bytes;
       address += kGrain) {
    Cell& cell = cell_of(address);
    if (!comes_before(cell.write, access, address, moment)) {
      report(writes ? "write after write" : "read after write", address, cell.write, access,
             moment);
    }
    if (writes) {
      for (const Access& read : cell.reads) {
        if (!comes_before(read, access, address, moment)) {
          report("write after read", address, read, access, moment);
        }
      }
      cell = {access, {}, on_its_way};
      continue;
    }
    if (cell.on_its_way && cell.write.block == moment.block) {
      report("read before its copy arrives", address, cell.write, access, moment);
    }
    // Of the reads that this one does not come after, two tell all: any third thread that writes
    // has one of another thread before it, and of another warp, if there is one.
    Access(&reads)[2] = cell.reads;
    if (comes_before(reads[0], access, address, moment)) {
      reads[0] = access;
    } else if (comes_before(reads[1], access, address, moment) || share_warp(reads[0], reads[1])) {
      reads[1] = access;
    }
  }
}

const bool listening = [] {
  const auto left = [](const emulation::Copy& copy) {
    look_at(copy.to, copy.bytes, true, copy.to, true);
  };
  const auto arrived = [](const emulation::Copy& copy) {
    look_at(copy.to, copy.bytes, true, copy.to);
  };
  emulation::listen({left, arrived, nullptr});
  return true;
}();

}  // namespace

void emulation::look(const void* at, std::size_t bytes, bool writes, const void* code) {
  look_at(at, bytes, writes, code);
}
