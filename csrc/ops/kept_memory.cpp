#include "ops/kept_memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <new>
#include <vector>

namespace fastgen {

namespace {

constexpr std::size_t kPage = std::size_t{2} << 20;  // a huge page

struct Block {
  void* memory;
  std::size_t size;
};

struct Pool {
  std::mutex mutex;
  std::vector<Block> blocks;  // the oldest first
  std::size_t bytes = 0;
};

// Never destroyed: tensors outlive static objects when the interpreter ends.
Pool& pool() {
  static Pool* kept = new Pool;
  return *kept;
}

// The pool's lock, or none where it is not to be had soon: in a process that was forked while
// another thread was in here, never. Whoever holds it is done in less than a microsecond.
std::unique_lock<std::mutex> locked() {
  std::unique_lock<std::mutex> lock(pool().mutex, std::defer_lock);
  for (int attempt = 0; attempt < 10000 && !lock.try_lock(); ++attempt) {
  }
  return lock;
}

std::size_t limit() {
  static const std::size_t bytes = [] {
    constexpr std::size_t kMega = std::size_t{1} << 20;
    if (const char* chosen = std::getenv("FASTGEN_KEEP_MB")) {
      return static_cast<std::size_t>(std::strtoull(chosen, nullptr, 10)) * kMega;
    }
    const long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
    const std::size_t memory =
        pages > 0 && page > 0 ? static_cast<std::size_t>(pages) * static_cast<std::size_t>(page)
                              : 0;
    return std::min(1024 * kMega, memory / 8);
  }();
  return bytes;
}

// From the C library as it is, for who keeps nothing: large pages, fresh each time, would cost more
// than they gain.
void* plain_block(std::size_t bytes) {
  constexpr std::size_t kLine = 64;
  void* memory = nullptr;
  if (posix_memalign(&memory, kLine, std::max(bytes, kLine)) != 0) throw std::bad_alloc();
  return memory;
}

}  // namespace

void* take_block(std::size_t bytes, std::size_t* size) {
  if (limit() == 0) {
    *size = bytes;
    return plain_block(bytes);
  }
  bytes = std::max((bytes + kPage - 1) / kPage, std::size_t{1}) * kPage;
  {
    const std::unique_lock<std::mutex> lock = locked();
    if (lock.owns_lock()) {
      std::vector<Block>& blocks = pool().blocks;
      // The one given back last is the one whose memory is likeliest in a cache.
      for (auto block = blocks.rbegin(); block != blocks.rend(); ++block) {
        if (block->size < bytes || block->size > bytes + bytes / 4) continue;
        const Block found = *block;
        blocks.erase(std::next(block).base());
        pool().bytes -= found.size;
        *size = found.size;
        return found.memory;
      }
    }
  }
  *size = bytes;
  void* memory = nullptr;
  if (posix_memalign(&memory, kPage, *size) != 0) {
    forget_blocks();  // and try once more with what that frees
    if (posix_memalign(&memory, kPage, *size) != 0) throw std::bad_alloc();
  }
#if defined(MADV_HUGEPAGE)
  madvise(memory, *size, MADV_HUGEPAGE);  // 512 times fewer first touches
#endif
  return memory;
}

void give_block(void* memory, std::size_t size) {
  std::vector<Block> leaving;
  {
    const std::unique_lock<std::mutex> lock = locked();
    if (!lock.owns_lock() || size > limit()) {
      std::free(memory);
      return;
    }
    Pool& kept = pool();
    kept.blocks.push_back({memory, size});
    kept.bytes += size;
    while (kept.bytes > limit()) {
      leaving.push_back(kept.blocks.front());
      kept.bytes -= kept.blocks.front().size;
      kept.blocks.erase(kept.blocks.begin());
    }
  }
  for (const Block& block : leaving) std::free(block.memory);
}

std::size_t kept_bytes() {
  const std::unique_lock<std::mutex> lock = locked();
  return lock.owns_lock() ? pool().bytes : 0;
}

void forget_blocks() {
  std::vector<Block> leaving;
  {
    const std::unique_lock<std::mutex> lock = locked();
    if (!lock.owns_lock()) return;
    leaving.swap(pool().blocks);
    pool().bytes = 0;
  }
  for (const Block& block : leaving) std::free(block.memory);
}

}  // namespace fastgen
