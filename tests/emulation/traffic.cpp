// Counts what emulated kernels that are watched (watch.h) ask of memory, as a profiler of a GPU
// counts it: what the 32 lanes of a warp do by one instruction is one request.
//
// A request to tensors costs sectors, the aligned 32 bytes that it touches. A request to shared
// memory costs wavefronts: lanes with accesses of 16 bytes take turns in four parts, of 8 bytes in
// two, and in each part a bank, 4 bytes of every 128, gives one word at a time.
//
// Lanes meet in a request by how often each has come to the instruction in its block; so where some
// lanes skip rounds of a loop that others do not, requests are counted that no GPU makes.
//
// Written at the end of a launch: `launch KERNEL`; for each instruction `site CODE SPACE ACTION
// REQUESTS COST LEAST`, where LEAST is what these requests would cost without a sector or a bank in
// excess; and for each tensor `tensor NAME ACTION BYTES SECTORS`.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <map>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "simt.h"
#include "watch.h"

namespace {

constexpr std::uintptr_t kSector = 32, kWord = 4, kBanks = 32;

struct Access {
  std::uintptr_t at;
  std::size_t bytes;
  int lane;
};
struct Site {
  const void* code;
  bool shared, writes;
  bool operator<(const Site& other) const {
    return std::tie(code, shared, writes) < std::tie(other.code, other.shared, other.writes);
  }
};
struct Cost {
  std::uint64_t requests = 0, cost = 0, least = 0;
};

std::map<std::tuple<Site, int, std::uint32_t>, std::vector<Access>> requests;  // warp, turn
std::map<std::pair<Site, int>, std::uint32_t> turns;                            // of a thread
std::uint64_t block_that_runs = 0;
std::map<Site, Cost> costs;
std::map<std::pair<std::string, bool>, std::uint64_t> sectors;  // (tensor, whether written)
std::map<std::string, std::size_t> sizes;

std::uint64_t sectors_of(const std::vector<Access>& accesses, bool writes, std::uint64_t& least) {
  std::set<std::uintptr_t> touched, bytes;
  for (const Access& access : accesses) {
    for (std::uintptr_t at = access.at; at < access.at + access.bytes; ++at) {
      bytes.insert(at);
      if (!touched.insert(at / kSector).second) continue;
      const auto* tensor = emulation::tensor_of(reinterpret_cast<const void*>(at));
      ++sectors[{tensor->name, writes}];
      sizes[tensor->name] = tensor->bytes;
    }
  }
  least = (bytes.size() + kSector - 1) / kSector;
  return touched.size();
}

std::uint64_t wavefronts_of(const std::vector<Access>& accesses, std::uint64_t& least) {
  std::size_t widest = 0;
  for (const Access& access : accesses) widest = std::max(widest, access.bytes);
  const int lanes = widest <= 4 ? 32 : (widest <= 8 ? 16 : 8);  // of a part
  std::uint64_t cost = 0;
  least = 0;
  for (int first = 0; first < 32; first += lanes) {
    std::set<std::uintptr_t> words;
    for (const Access& access : accesses) {
      if (access.lane / lanes != first / lanes) continue;
      for (std::uintptr_t at = access.at; at < access.at + access.bytes; ++at) {
        words.insert(at / kWord);
      }
    }
    std::size_t of_bank[kBanks] = {}, most = 0;
    for (const std::uintptr_t word : words) most = std::max(most, ++of_bank[word % kBanks]);
    cost += most;
    least += most != 0;
  }
  return cost;
}

void end_block() {
  for (const auto& [key, accesses] : requests) {
    const Site& site = std::get<0>(key);
    Cost& cost = costs[site];
    std::uint64_t least = 0;
    cost.cost += site.shared ? wavefronts_of(accesses, least)
                             : sectors_of(accesses, site.writes, least);
    cost.least += least;
    ++cost.requests;
  }
  requests.clear();
  turns.clear();
}

void count(const void* at, std::size_t bytes, bool writes, const void* code) {
  emulation::Moment moment;
  if (!emulation::now(moment) || emulation::is_own(at)) return;
  const bool shared = emulation::is_shared(at);
  if (!shared && emulation::tensor_of(at) == nullptr) return;  // what lanes give each other
  if (moment.block != block_that_runs) end_block();
  block_that_runs = moment.block;
  const Site site{code, shared, writes};
  const std::uint32_t turn = turns[{site, moment.thread}]++;
  requests[{site, moment.thread / 32, turn}].push_back(
      {reinterpret_cast<std::uintptr_t>(at), bytes, moment.thread % 32});
}

void end_launch(const void* kernel) {
  end_block();
  std::printf("launch %p\n", kernel);
  for (const auto& [site, cost] : costs) {
    std::printf("site %p %s %s %llu %llu %llu\n", site.code, site.shared ? "shared" : "global",
                site.writes ? "write" : "read", static_cast<unsigned long long>(cost.requests),
                static_cast<unsigned long long>(cost.cost),
                static_cast<unsigned long long>(cost.least));
  }
  for (const auto& [tensor, count] : sectors) {
    std::printf("tensor %s %s %zu %llu\n", tensor.first.c_str(), tensor.second ? "write" : "read",
                sizes[tensor.first], static_cast<unsigned long long>(count));
  }
  costs.clear();
  sectors.clear();
  sizes.clear();
}

// Asynchronous copies have no instruction of the kernel's own here.
void count_copy(const emulation::Copy& copy) {
  if (copy.from != nullptr) count(copy.from, copy.bytes, false, nullptr);
  count(copy.to, copy.bytes, true, nullptr);
}

const bool listening = [] {
  emulation::listen({count_copy, nullptr, end_launch});
  return true;
}();

}  // namespace

void emulation::look(const void* at, std::size_t bytes, bool writes, const void* code) {
  count(at, bytes, writes, code);
}
