// The kernel behind reorder.h: blocks of as many rows and columns as a vector has lanes, transposed in
// registers.

#include "cpu/reorder.h"

#include "cpu/vectors.h"

namespace fastgen::cpu::FASTGEN_CPU {
namespace {

// What a vector's lane holds while elements of type T are moved; only its bits count.
template <typename T>
struct LaneOf {
  using type = float;
};
template <>
struct LaneOf<std::uint64_t> {
  using type = double;
};
template <typename T>
using Lane = typename LaneOf<T>::type;

template <typename T>
inline Vector<Lane<T>> load_elements(const T* from) {
  return load(reinterpret_cast<const Lane<T>*>(from));
}
inline Vector<float> load_elements(const std::uint16_t* from) {
#if defined(__AVX512F__)
  __m256i half;
  __builtin_memcpy(&half, from, sizeof(half));
  return reinterpret_cast<Vector<float>>(_mm512_cvtepu16_epi32(half));
#else
  HalfBits half;
  __builtin_memcpy(&half, from, sizeof(half));
  return reinterpret_cast<Vector<float>>(__builtin_convertvector(half, WordBits));
#endif
}

template <typename T>
inline void store_elements(T* to, Vector<Lane<T>> vector) {
  __builtin_memcpy(to, &vector, sizeof(vector));
}
inline void store_elements(std::uint16_t* to, Vector<float> vector) {
#if defined(__AVX512F__)
  const __m256i half = _mm512_cvtepi32_epi16(reinterpret_cast<__m512i>(vector));
#else
  const HalfBits half = __builtin_convertvector(reinterpret_cast<WordBits>(vector), HalfBits);
#endif
  __builtin_memcpy(to, &half, sizeof(half));
}

// A block of rows x columns elements, at most as many as lanes. Rows of `from` and `to` begin so many
// elements apart. kWhole: it has as many as lanes.
template <typename T, bool kWhole>
inline void move_block(const T* from, std::int64_t from_row, T* to, std::int64_t to_row,
                       std::int64_t rows, std::int64_t columns) {
  constexpr int kEdge = kLanes<Lane<T>>;
  Vector<Lane<T>> block[kEdge];
  FASTGEN_UNROLLED
  for (int i = 0; i < kEdge; ++i) {
    if constexpr (kWhole) {
      block[i] = load_elements(from + i * from_row);
    } else {
      T row[kEdge] = {};
      if (i < rows) __builtin_memcpy(row, from + i * from_row, columns * sizeof(T));
      block[i] = load_elements(row);
    }
  }
  transpose<Lane<T>>(block);
  FASTGEN_UNROLLED
  for (int i = 0; i < kEdge; ++i) {
    if constexpr (kWhole) {
      store_elements(to + i * to_row, block[i]);
    } else {
      T row[kEdge];
      store_elements(row, block[i]);
      if (i < columns) __builtin_memcpy(to + i * to_row, row, rows * sizeof(T));
    }
  }
}

inline std::int64_t at_most(std::int64_t number, std::int64_t most) {
  return number < most ? number : most;
}

template <typename T>
void move_piece(const ReorderCall& call, std::int64_t piece) {
  constexpr std::int64_t kEdge = kLanes<Lane<T>>;
  const ReorderPlan& plan = call.plan;
  const std::int64_t matrix = piece / (plan.down * plan.right) * call.rows * call.columns;
  const T* from = static_cast<const T*>(call.from) + matrix;
  T* to = static_cast<T*>(call.to) + matrix;
  const std::int64_t first_row = piece / plan.right % plan.down * plan.block_rows;
  const std::int64_t first_column = piece % plan.right * plan.block_columns;
  const std::int64_t end_row = at_most(call.rows, first_row + plan.block_rows);
  const std::int64_t end_column = at_most(call.columns, first_column + plan.block_columns);
  for (std::int64_t c = first_column; c < end_column; c += kEdge) {
    for (std::int64_t r = first_row; r < end_row; r += kEdge) {
      const T* block = from + r * call.columns + c;
      T* place = to + c * call.rows + r;
      const std::int64_t rows = at_most(end_row - r, kEdge), columns = at_most(end_column - c, kEdge);
      if (rows == kEdge && columns == kEdge) {
        move_block<T, true>(block, call.columns, place, call.rows, kEdge, kEdge);
      } else {
        move_block<T, false>(block, call.columns, place, call.rows, rows, columns);
      }
    }
  }
}

template <typename T>
void move_pieces(const ReorderCall& call, std::int64_t begin, std::int64_t end) {
  for (std::int64_t piece = begin; piece < end; ++piece) move_piece<T>(call, piece);
}

}  // namespace

void reorder(const ReorderCall& call, std::int64_t begin, std::int64_t end) {
  switch (call.element_size) {
    case 2: return move_pieces<std::uint16_t>(call, begin, end);
    case 4: return move_pieces<std::uint32_t>(call, begin, end);
    default: return move_pieces<std::uint64_t>(call, begin, end);
  }
}

}  // namespace fastgen::cpu::FASTGEN_CPU
