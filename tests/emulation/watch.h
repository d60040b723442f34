// Accesses to memory of emulated kernels that were compiled with -fsanitize=thread, as they happen.
// A program that watches is linked with watch.cpp and with one definition of `look`.
#pragma once

#include <cstddef>

namespace emulation {

// The thread that runs is about to read or write so many bytes, by the instruction before `code`.
void look(const void* at, std::size_t bytes, bool writes, const void* code);

// Whether memory is a block's own, static or dynamic.
bool is_shared(const void* address);

// Memory that a kernel is given, by its name.
struct Tensor {
  const char* name;
  const char* at;
  std::size_t bytes;
};
void add_tensor(const Tensor& tensor);
void remove_tensor(const void* at);
// nullptr: none.
const Tensor* tensor_of(const void* address);

}  // namespace emulation
