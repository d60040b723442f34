// Plans of the image-edge kernels for calls that are read from a file; a line for each problem.
//
//     image_edge_plans FOLDER: calls.bin holds int64 rows: kernel (0 convolution, 1 transposed,
//     2 weight gradient), dtype (0 float32, 1 TF32,
//     2 in 16 bits), channels_last, shared_limit, channels of the picture, others, picture height,
//     width, kernel_h, kernel_w, others' height, width, stride_h, stride_w, padding_h, padding_w.

#include <string>
#include <vector>

#include "cuda/conv2d_bias_leaky_relu_plan.h"
#include "cuda/conv2d_bias_leaky_relu_weight_plan.h"
#include "cuda/conv_transpose2d_bias_leaky_relu_plan.h"
#include "host.h"

using namespace fastgen;
using namespace fastgen::cuda;

namespace {

constexpr int kNumbers = 16;

void contiguous(const std::int64_t (&extents)[4], std::int64_t (&strides)[4]) {
  std::int64_t step = 1;
  for (int d = 3; d >= 0; --d) {
    strides[d] = step;
    step *= extents[d];
  }
}

template <typename T, bool kTensorCore, bool kChannelsLast>
const char* problem_of(const std::int64_t* row) {
  const std::int64_t limit = row[3], picture = row[4], others = row[5];
  if (row[0] == 0) {
    ImageEdgeConvCall call{};
    call.batch = 2, call.channels = picture, call.height = row[6], call.width = row[7];
    call.filters = others, call.kernel_h = row[8], call.kernel_w = row[9];
    call.out_height = row[10], call.out_width = row[11];
    call.stride_h = row[12], call.stride_w = row[13];
    call.padding_h = row[14], call.padding_w = row[15];
    call.channels_last = kChannelsLast;
    contiguous({2, picture, row[6], row[7]}, call.input_strides);
    contiguous({others, picture, row[8], row[9]}, call.weight_strides);
    return edge_conv_plan<T, kTensorCore, kChannelsLast>(call, 132, static_cast<int>(limit))
        .problem;
  }
  if (row[0] == 2) {
    ImageEdgeWeightCall call{};
    call.batch = 2, call.channels = picture, call.height = row[6], call.width = row[7];
    call.filters = others, call.kernel_h = row[8], call.kernel_w = row[9];
    call.map_height = row[10], call.map_width = row[11];
    call.stride_h = row[12], call.stride_w = row[13];
    call.padding_h = row[14], call.padding_w = row[15];
    const std::int64_t extents[] = {2, picture, row[6], row[7]};
    if (kChannelsLast) {
      const std::int64_t line = row[7] * picture;
      const std::int64_t strides[] = {row[6] * line, 1, line, picture};
      std::copy(strides, strides + 4, call.picture_strides);
    } else {
      contiguous({extents[0], extents[1], extents[2], extents[3]}, call.picture_strides);
    }
    return edge_weight_plan<T>(call, 132, static_cast<int>(limit), 256, 2).problem;
  }
  ImageEdgeTransposeCall call{};
  call.batch = 2, call.channels = others, call.height = row[10], call.width = row[11];
  call.out_channels = picture, call.kernel_h = row[8], call.kernel_w = row[9];
  call.out_height = row[6], call.out_width = row[7];
  call.stride_h = row[12], call.stride_w = row[13];
  call.padding_h = row[14], call.padding_w = row[15];
  call.input_channels_last = call.channels_last = kChannelsLast;
  contiguous({others, picture, row[8], row[9]}, call.weight_strides);
  if (const char* problem = strip_problem(call)) return problem;
  const std::int64_t at_once = strip_channels(call);
  for (std::int64_t first = 0; first < picture; first += at_once) {
    const auto plan = strip_plan<T, kTensorCore, kChannelsLast>(
        call, std::min(at_once, picture - first), 132, static_cast<int>(limit));
    if (plan.problem != nullptr) return plan.problem;
  }
  return nullptr;
}

template <bool kChannelsLast>
const char* problem_of(const std::int64_t* row) {
  switch (row[1]) {
    case 0:
      return problem_of<float, false, kChannelsLast>(row);
    case 1:
      return problem_of<float, true, kChannelsLast>(row);
    default:
      return problem_of<BFloat16, true, kChannelsLast>(row);
  }
}

}  // namespace

int main(int, char** arguments) {
  std::FILE* file = std::fopen((std::string(arguments[1]) + "/calls.bin").c_str(), "rb");
  host::require(file != nullptr, "calls.bin");
  std::vector<std::int64_t> row(kNumbers);
  std::vector<std::int64_t> problems;
  std::int64_t calls = 0;
  for (; std::fread(row.data(), sizeof(std::int64_t), kNumbers, file) == kNumbers; ++calls) {
    const char* problem =
        row[2] != 0 ? problem_of<true>(row.data()) : problem_of<false>(row.data());
    if (problem != nullptr) problems.push_back(calls);
  }
  std::fclose(file);
  problems.push_back(calls);  // how many there were
  std::FILE* out = std::fopen((std::string(arguments[1]) + "/problems.bin").c_str(), "wb");
  host::require(out != nullptr && std::fwrite(problems.data(), sizeof(std::int64_t),
                                              problems.size(), out) == problems.size(),
                "problems.bin");
  std::fclose(out);
}
