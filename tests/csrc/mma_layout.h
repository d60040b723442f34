// Which register of which lane holds a number of a warp's matrix product, as the PTX manual lays
// mma.m16n8k16 (16-bit types) and mma.m16n8k8 (TF32) out.
#pragma once

namespace mma {

struct Register {
  int lane, word, half;  // half 0 or 1 of a word that holds two numbers
};
struct Element {
  int row, column;
};

template <typename T>
inline constexpr int kTerms = sizeof(T) == 4 ? 8 : 16;

// Term k of one of the 8 lines that a quarter of the warp's words holds.
template <typename T>
constexpr Register register_of(int line, int k) {
  return sizeof(T) == 4 ? Register{line * 4 + k % 4, k / 4, 0}
                        : Register{line * 4 + k % 8 / 2, k / 8, k % 2};
}

template <typename T>
constexpr Register row_register(int row, int k) {
  const Register found = register_of<T>(row % 8, k);
  return {found.lane, row / 8 + 2 * found.word, found.half};
}

template <typename T>
constexpr Register column_register(int k, int column) {
  return register_of<T>(column, k);
}

// Where result register i of a lane stands.
constexpr Element result_element(int lane, int i) {
  return {lane / 4 + (i < 2 ? 0 : 8), lane % 4 * 2 + i % 2};
}

}  // namespace mma
