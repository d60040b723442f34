// What compilers call for each access with -fsanitize=thread; no other part of that sanitizer is
// linked.
#include "watch.h"

#include <cstring>
#include <map>

#include "simt.h"

// Where the program's variables begin and end: the linker says.
extern "C" char __data_start, _end;

using emulation::look;

bool emulation::is_shared(const void* address) {
  return (address >= &__data_start && address < &_end) || is_dynamic_shared(address);
}

namespace {
std::map<const void*, emulation::Tensor> tensors;
}

void emulation::add_tensor(const Tensor& tensor) { tensors[tensor.at] = tensor; }
void emulation::remove_tensor(const void* at) { tensors.erase(at); }
const emulation::Tensor* emulation::tensor_of(const void* address) {
  const auto behind = tensors.upper_bound(address);
  if (behind == tensors.begin()) return nullptr;
  const Tensor& tensor = std::prev(behind)->second;
  return address < tensor.at + tensor.bytes ? &tensor : nullptr;
}

#define CALLER __builtin_return_address(0)
#define ACCESSES(bytes)                                                                   \
  void __tsan_read##bytes(void* at) { look(at, bytes, false, CALLER); }                   \
  void __tsan_write##bytes(void* at) { look(at, bytes, true, CALLER); }                   \
  void __tsan_unaligned_read##bytes(void* at) { look(at, bytes, false, CALLER); }         \
  void __tsan_unaligned_write##bytes(void* at) { look(at, bytes, true, CALLER); }

extern "C" {
ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)
void __tsan_read_range(void* at, std::size_t bytes) { look(at, bytes, false, CALLER); }
void __tsan_write_range(void* at, std::size_t bytes) { look(at, bytes, true, CALLER); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}

// In the objects of kernels these stand for memcpy and memset.
void* watched_memcpy(void* to, const void* from, std::size_t bytes) {
  look(from, bytes, false, CALLER);
  look(to, bytes, true, CALLER);
  return std::memcpy(to, from, bytes);
}
void* watched_memset(void* to, int value, std::size_t bytes) {
  look(to, bytes, true, CALLER);
  return std::memset(to, value, bytes);
}
}
