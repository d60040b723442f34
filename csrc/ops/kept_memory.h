// Memory of large results on the CPU, kept when a tensor goes for the next one of its size.
//
// The C library takes what is larger than 32 MiB from the system every time and gives it back, and
// the first touch of each page of 4 KiB then costs many times what a kernel does with it: 16 to 20
// ms for the 34 MB of a float32 32x64x64x64, where the kernel itself takes 1.4 (one core of an AMD
// EPYC). So a few blocks are kept, as PyTorch does on GPUs.
#pragma once

#include <cstddef>

namespace fastgen {

// Results of so many bytes and more come from here: half a page, so that no more than half of a block
// is left over.
constexpr std::size_t kLeastKept = std::size_t{1} << 20;

// A block of at least `bytes`, aligned to 2 MiB, or to a line where nothing is kept; its size is
// written to `size`. Never fails without std::bad_alloc. A block that was given back is used again
// where it is no more than a quarter too large.
void* take_block(std::size_t bytes, std::size_t* size);

// Gives a block back: it is kept while all that are kept stay within the limit, FASTGEN_KEEP_MB
// megabytes (default: 1024, at most an eighth of the machine's memory; 0 keeps nothing).
void give_block(void* block, std::size_t size);

// Bytes that are kept now and belong to no tensor.
std::size_t kept_bytes();

// Frees what is kept.
void forget_blocks();

}  // namespace fastgen
