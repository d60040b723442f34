// Applies each formula of csrc/formulas.h to every element of its inputs.

#include "formulas.h"

#include "host.h"

using namespace fastgen;

int main(int, char** arguments) {
  const std::string folder = arguments[1];
  const std::string formula = arguments[2];
  const std::int64_t count = std::atoll(arguments[3]);

  if (formula == "philox") {  // counter and key of 4 and 2 words
    host::Buffer<std::uint32_t> input(count * 6), output(count * 4);
    input.read(folder + "/input.bin");
    for (std::int64_t i = 0; i < count; ++i) {
      const std::uint32_t* in = input.data() + 6 * i;
      const Words words = philox4x32({{in[0], in[1], in[2], in[3]}}, in[4], in[5]);
      std::memcpy(output.data() + 4 * i, words.word, 16);
    }
    output.write(folder + "/output.bin");
  } else if (formula == "words" || formula == "normals") {  // of groups first ... first + count - 1
    const std::int64_t seed = std::atoll(arguments[4]), first = std::atoll(arguments[5]);
    host::Buffer<std::uint32_t> words_out(count * 4);
    host::Buffer<float> normals_out(count * 4);
    for (std::int64_t i = 0; i < count; ++i) {
      const Words words = random_words(seed, first + i);
      std::memcpy(words_out.data() + 4 * i, words.word, 16);
      float values[4];
      normals(seed, first + i, values);
      std::memcpy(normals_out.data() + 4 * i, values, 16);
    }
    words_out.write(folder + "/words.bin");
    normals_out.write(folder + "/normals.bin");
  } else if (formula == "box_muller" || formula == "coarse_box_muller") {  // pairs of words
    host::Buffer<std::uint32_t> input(count * 2);
    host::Buffer<float> output(count * 2);
    input.read(folder + "/input.bin");
    for (std::int64_t i = 0; i < count; ++i) {
      float* pair = output.data() + 2 * i;
      const std::uint32_t* in = input.data() + 2 * i;
      if (formula == "box_muller") {
        normal_pair(in[0], in[1], &pair[0], &pair[1]);
      } else {
        coarse_normal_pair(in[0], in[1], &pair[0], &pair[1]);
      }
    }
    output.write(folder + "/output.bin");
  } else if (formula == "leaky_relu" || formula == "kl" || formula == "deviation") {
    const float slope = std::strtof(arguments[4], nullptr);  // a, b
    host::Buffer<float> input(count * 2), output(count), masked(count);
    input.read(folder + "/input.bin");
    for (std::int64_t i = 0; i < count; ++i) {
      const float a = input.data()[2 * i], b = input.data()[2 * i + 1];
      output.data()[i] = formula == "kl"          ? kl_term(a, b)
                         : formula == "deviation" ? standard_deviation(b)
                                                  : leaky_relu(a, slope);
      masked.data()[i] = leaky_relu_mask(a, b, slope);
    }
    output.write(folder + "/output.bin");
    masked.write(folder + "/masked.bin");
  } else if (formula == "tanh") {
    host::Buffer<float> input(count), output(count);
    input.read(folder + "/input.bin");
    for (std::int64_t i = 0; i < count; ++i) {
      output.data()[i] = hyperbolic_tangent(input.data()[i]);
    }
    output.write(folder + "/output.bin");
  } else if (formula == "coarse") {  // logvar
    host::Buffer<float> input(count), deviation(count), growth(count), kl(count);
    input.read(folder + "/input.bin");
    for (std::int64_t i = 0; i < count; ++i) {
      deviation.data()[i] = coarse_deviation(input.data()[i]);
      growth.data()[i] = coarse_expm1_of_logvar(input.data()[i]);
      const float mean[1] = {0.0f}, logvar[1] = {input.data()[i]};
      kl.data()[i] = coarse_kl_terms(mean, logvar);
    }
    deviation.write(folder + "/deviation.bin");
    growth.write(folder + "/growth.bin");
    kl.write(folder + "/kl.bin");
  } else if (formula == "coarse_kl") {  // eight means, eight logvars
    host::Buffer<float> input(count * 16), output(count);
    input.read(folder + "/input.bin");
    for (std::int64_t i = 0; i < count; ++i) {
      float mean[8], logvar[8];
      std::memcpy(mean, input.data() + 16 * i, sizeof(mean));
      std::memcpy(logvar, input.data() + 16 * i + 8, sizeof(logvar));
      output.data()[i] = coarse_kl_terms(mean, logvar);
    }
    output.write(folder + "/output.bin");
  } else if (formula == "conversions") {  // every 16-bit pattern to float32, float32 values back
    host::Buffer<float> from_bfloat16(65536), from_float16(65536), input(count);
    host::Buffer<std::uint16_t> to_bfloat16(count), to_float16(count);
    for (std::uint32_t i = 0; i < 65536; ++i) {
      from_bfloat16.data()[i] = to_float(BFloat16{static_cast<std::uint16_t>(i)});
      from_float16.data()[i] = to_float(Float16{static_cast<std::uint16_t>(i)});
    }
    input.read(folder + "/input.bin");
    for (std::int64_t i = 0; i < count; ++i) {
      to_bfloat16.data()[i] = from_float<BFloat16>(input.data()[i]).bits;
      to_float16.data()[i] = from_float<Float16>(input.data()[i]).bits;
    }
    from_bfloat16.write(folder + "/from_bfloat16.bin");
    from_float16.write(folder + "/from_float16.bin");
    to_bfloat16.write(folder + "/to_bfloat16.bin");
    to_float16.write(folder + "/to_float16.bin");
  } else if (formula == "division") {  // numerators and divisors
    host::Buffer<std::uint32_t> input(count * 2), output(count);
    input.read(folder + "/input.bin");
    for (std::int64_t i = 0; i < count; ++i) {
      output.data()[i] = FastDivide(input.data()[2 * i + 1]).quotient(input.data()[2 * i]);
    }
    output.write(folder + "/output.bin");
  } else {
    host::require(false, "unknown formula " + formula);
  }
  return 0;
}
