// Instead of the instruction mma.sync: the registers of a warp's lanes as the PTX manual lays them
// out (m16n8k16 for 16-bit types, m16n8k8 for TF32). Stands in csrc/cuda/tensor_core.h.
#pragma once

template <typename T>
float half_of(std::uint32_t word, int half) {
  return to_float(T{static_cast<std::uint16_t>(word >> (16 * half))});
}

template <typename T>
void multiply(float& d0, float& d1, float& d2, float& d3, const Rows& a, const Columns& b) {
  constexpr int kTerms = sizeof(T) == 4 ? 8 : 16;
  struct Lane {
    Rows rows;
    Columns columns;
  };
  const Lane mine{a, b};
  emulation::give_to_warp(&mine, sizeof(mine));
  const auto of = [](int lane) -> const Lane& {
    return *static_cast<const Lane*>(emulation::given_by(lane));
  };
  // TF32 instructions do not look at the last 13 bits.
  const auto cut = [](std::uint32_t word) { return float_of(word & ~0x1fffu); };

  const int lane = emulation::place().thread % 32;
  float* const d[4] = {&d0, &d1, &d2, &d3};
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + (i < 2 ? 0 : 8), column = lane % 4 * 2 + i % 2;
    const int below = row >= 8 ? 1 : 0;
    float sum = 0;
    for (int k = 0; k < kTerms; ++k) {
      if constexpr (sizeof(T) == 4) {
        sum += cut(of(row % 8 * 4 + k % 4).rows.words[below + 2 * (k / 4)]) *
               cut(of(column * 4 + k % 4).columns.words[k / 4]);
      } else {
        sum += half_of<T>(of(row % 8 * 4 + k % 8 / 2).rows.words[below + 2 * (k / 8)], k % 2) *
               half_of<T>(of(column * 4 + k % 8 / 2).columns.words[k / 8], k % 2);
      }
    }
    *d[i] += sum;
  }
  emulation::wait_for_warp();
}
