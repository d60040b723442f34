// Runs the pieces of csrc/cpu/reorder.cpp in calls of one to three, the last ones first.

#include "cpu/reorder.cpp"
#include "host.h"

using namespace fastgen::cpu;

namespace {

template <typename T>
void run(const std::string& folder, ReorderCall call, std::int64_t offset) {
  const std::int64_t count = call.matrices * call.rows * call.columns;
  host::Buffer<T> from(count, offset), to(count, offset);
  from.read(folder + "/from.bin");
  call.from = from.data();
  call.to = to.data();
  const std::int64_t together = 1 + offset % 3;
  for (std::int64_t end = call.plan.pieces; end > 0; end -= together) {
    const std::int64_t begin = end > together ? end - together : 0;
    fastgen::cpu::FASTGEN_CPU::reorder(call, begin, end);
  }
  to.write(folder + "/to.bin");
}

// The piece that meets the end of a picture of more than 2^32 elements.
void run_large(ReorderCall call) {
  const std::int64_t count = call.matrices * call.rows * call.columns;
  host::require(count > std::int64_t{1} << 32, "not large");
  std::uint16_t* from = host::sparse<std::uint16_t>(count);
  std::uint16_t* to = host::sparse<std::uint16_t>(count);
  from[count - 2] = 7;
  call.from = from;
  call.to = to;
  fastgen::cpu::FASTGEN_CPU::reorder(call, call.plan.pieces - 1, call.plan.pieces);
  host::require(to[count - 1 - call.rows] == 7, "wrong element");
}

}  // namespace

int main(int, char** arguments) {
  ReorderCall call{};
  call.element_size = std::atoll(arguments[2]);
  call.matrices = std::atoll(arguments[3]);
  call.rows = std::atoll(arguments[4]);
  call.columns = std::atoll(arguments[5]);
  call.plan = reorder_plan(call.matrices, call.rows, call.columns);
  const std::int64_t offset = std::atoll(arguments[6]);
  if (offset < 0) {
    run_large(call);
  } else if (call.element_size == 2) {
    run<std::uint16_t>(arguments[1], call, offset);
  } else if (call.element_size == 4) {
    run<std::uint32_t>(arguments[1], call, offset);
  } else {
    run<std::uint64_t>(arguments[1], call, offset);
  }
  return 0;
}
