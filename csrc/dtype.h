// The element types of tensors that kernels take.
#pragma once

namespace fastgen {

enum class Dtype { float32, bfloat16, float16, float64 };  // float64: on CPUs only

}  // namespace fastgen
