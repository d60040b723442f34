// What the programs share that run CPU kernels of csrc/cpu by themselves.
#pragma once

#include "cpu/capability.h"
#include "host.h"

namespace host {

// The pieces of a plan one by one, the last one first, each with scratch memory that ends where the
// plan says and holds NaN before, or whatever `fill` makes as every byte.
template <typename Call>
void run_pieces(const Call& call,
                void (*kernel)(const Call&, std::int64_t, std::int64_t, void*), int fill = 0xff) {
  for (std::int64_t piece = call.plan.pieces; piece-- > 0;) {
    Buffer<char> scratch(call.plan.scratch_bytes);
    std::memset(scratch.data(), fill, scratch.count());
    kernel(call, piece, piece + 1, scratch.data());
  }
}

// The arguments of a program from number `next` on.
struct Arguments {
  char** words;
  int next;

  double real() { return std::atof(words[next++]); }
  std::int64_t number() { return std::atoll(words[next++]); }
  bool flag() { return number() != 0; }
};

// Calls f with the dtype that a name stands for and a value of its element type.
template <typename F>
void with_cpu_dtype(const std::string& name, F f) {
  if (name == "float32") return f(fastgen::Dtype::float32, float{});
  if (name == "bfloat16") return f(fastgen::Dtype::bfloat16, fastgen::BFloat16{});
  if (name == "float64") return f(fastgen::Dtype::float64, double{});
  require(false, "unknown dtype " + name);
}

}  // namespace host
