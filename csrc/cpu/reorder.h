// Memory from one layout into the other: contiguous into channels_last and back.
#pragma once

#include "cpu/capability.h"

namespace fastgen::cpu {

// How a matrix is cut into pieces: blocks of so many rows and columns, the last ones with fewer.
struct ReorderPlan {
  std::int64_t block_rows, block_columns;
  std::int64_t down, right;  // blocks
  std::int64_t pieces;       // of all matrices
};

// `matrices` of rows x columns elements behind each other, each of them transposed. A picture is one
// of C x HW in contiguous memory and one of HW x C in channels_last. Bits are moved, not numbers.
struct ReorderCall {
  const void* from;
  void* to;  // as many matrices of columns x rows
  std::int64_t matrices, rows, columns;
  std::int64_t element_size;  // 2, 4 or 8 bytes
  ReorderPlan plan;
};

using Reorder = void(const ReorderCall& call, std::int64_t begin, std::int64_t end);

FASTGEN_KERNEL(Reorder, reorder)  // pieces begin ... end - 1

constexpr std::int64_t kReorderRows = 1024;     // of a block, at most
constexpr std::int64_t kReorderColumns = 64;    // of which a block has a multiple: whole vectors
constexpr std::int64_t kReorderPiece = 65536;   // elements of a block, about

inline ReorderPlan reorder_plan(std::int64_t matrices, std::int64_t rows, std::int64_t columns) {
  ReorderPlan plan{};
  if (matrices * rows * columns == 0) return plan;
  plan.block_rows = rows < kReorderRows ? rows : kReorderRows;
  plan.block_columns = kReorderPiece / plan.block_rows / kReorderColumns * kReorderColumns;
  plan.down = (rows + plan.block_rows - 1) / plan.block_rows;
  plan.right = (columns + plan.block_columns - 1) / plan.block_columns;
  plan.pieces = matrices * plan.down * plan.right;
  return plan;
}

}  // namespace fastgen::cpu
