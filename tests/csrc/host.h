// Files, guarded buffers and virtual memory for the programs that run kernel bodies on the host.
#pragma once

#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "cuda/launch.h"

namespace host {

inline void require(bool condition, const std::string& what) {
  if (condition) return;
  std::fprintf(stderr, "%s\n", what.c_str());
  std::exit(2);
}

// `count` elements, `offset` elements behind a 16-byte boundary and right before the end of their
// allocation, so that AddressSanitizer sees the first access behind them. Their bits start as ones:
// NaN in every floating dtype.
template <typename T>
class Buffer {
 public:
  explicit Buffer(std::int64_t count, std::int64_t offset = 0)
      : count_(count), storage_(static_cast<T*>(std::malloc((count + offset) * sizeof(T) + 1))) {
    std::memset(static_cast<void*>(storage_), 0xff, (count + offset) * sizeof(T));
    data_ = storage_ + offset;
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { std::free(storage_); }

  T* data() { return data_; }
  std::int64_t count() const { return count_; }

  Buffer& read(const std::string& path) {
    std::FILE* file = std::fopen(path.c_str(), "rb");
    require(file != nullptr, "cannot open " + path);
    const std::size_t got = std::fread(data_, sizeof(T), count_, file);
    require(got == static_cast<std::size_t>(count_) && std::fgetc(file) == EOF,
            path + " has another size than its shape says");
    std::fclose(file);
    return *this;
  }

  void write(const std::string& path) const {
    std::FILE* file = std::fopen(path.c_str(), "wb");
    require(file != nullptr && std::fwrite(data_, sizeof(T), count_, file) ==
                                   static_cast<std::size_t>(count_),
            "cannot write " + path);
    std::fclose(file);
  }

 private:
  std::int64_t count_;
  T* storage_;
  T* data_;
};

// Memory that exists only where it is touched, and reads as zeros: tensors of more than 2^32
// elements, of which a test runs a few blocks.
template <typename T>
T* sparse(std::int64_t count) {
  void* memory = mmap(nullptr, count * sizeof(T), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  require(memory != MAP_FAILED, "no address space");
  return static_cast<T*>(memory);
}

// Calls f with a value of the element type that `dtype` names.
template <typename F>
void with_dtype(const std::string& dtype, F f) {
  if (dtype == "float32") return f(float{});
  if (dtype == "bfloat16") return f(fastgen::BFloat16{});
  if (dtype == "float16") return f(fastgen::Float16{});
  require(false, "unknown dtype " + dtype);
}

}  // namespace host
