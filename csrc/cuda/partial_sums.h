// Adds the partial sums that blocks left in a workspace.
#pragma once

#include "cuda/launch.h"

namespace fastgen::cuda {

// result[c] = factor * sum over r < rows and i < inner of partials[(r * channels + c) * inner + i],
// in float32, always in the same order. rows * inner below 2^31. Returns nullptr or an error text.
const char* sum_partials(const float* partials, std::int64_t rows, std::int64_t channels,
                         std::int64_t inner, float factor, void* result, Dtype dtype,
                         void* stream);

}  // namespace fastgen::cuda
