// Instead of the instruction mma.sync: each lane adds up its four numbers from the registers of its
// warp. Stands in csrc/cuda/tensor_core.h.
#pragma once

template <typename T>
float number_of(std::uint32_t word, int half) {
  if constexpr (sizeof(T) == 4) {
    return float_of(word & ~0x1fffu);  // TF32 instructions do not look at the last 13 bits
  } else {
    return to_float(T{static_cast<std::uint16_t>(word >> (16 * half))});
  }
}

// What lanes give each other is ordered by nature: races.cpp need not look at it.
template <typename T>
__attribute__((no_sanitize("thread"))) void multiply(float& d0, float& d1, float& d2, float& d3,
                                                     const Rows& a, const Columns& b) {
  struct Lane {
    Rows rows;
    Columns columns;
  };
  const Lane mine{a, b};
  emulation::give_to_warp(&mine, sizeof(mine));
  const auto of = [](int lane) -> const Lane& {
    return *static_cast<const Lane*>(emulation::given_by(lane));
  };

  float* const d[4] = {&d0, &d1, &d2, &d3};
  for (int i = 0; i < 4; ++i) {
    const auto [row, column] = mma::result_element(emulation::place().thread % 32, i);
    float sum = 0;
    for (int k = 0; k < mma::kTerms<T>; ++k) {
      const mma::Register x = mma::row_register<T>(row, k), y = mma::column_register<T>(k, column);
      sum += number_of<T>(of(x.lane).rows.words[x.word], x.half) *
             number_of<T>(of(y.lane).columns.words[y.word], y.half);
    }
    *d[i] += sum;
  }
  emulation::wait_for_warp();
}
