// SPDX-License-Identifier: MIT
// Target updates: every dtype, size, alignment and tau, at every level of this CPU and through the CUDA
// kernel's indexing, against an oracle of one element at a time.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <span>
#include <vector>

#include "check.hpp"
#include "target/lerp.hpp"
#include "target/update.hpp"
#include "target_kernel.hpp"

using namespace fastreplay;

namespace {

const std::vector<double> kTaus{0.0, 1e-8, 0.005, 0.3, 0.4999, 0.49999999999, 0.5, 0.7, 0.999, 1 - 1e-12, 1.0};

struct Kind {
  Dtype target;
  Dtype online;
  bool has_master;
};

std::vector<Kind> kinds() {
  std::vector<Kind> found;
  for (int target = 0; target <= static_cast<int>(Dtype::kBytes); ++target) {
    for (int online = 0; online <= static_cast<int>(Dtype::kBytes); ++online) {
      for (const bool has_master : {false, true}) {
        const Kind kind{static_cast<Dtype>(target), static_cast<Dtype>(online), has_master};
        float master = 0;
        const Chunk chunk{nullptr, nullptr, has_master ? &master : nullptr, 0, kind.target, kind.online, false};
        if (is_supported(chunk)) found.push_back(kind);
      }
    }
  }
  return found;
}

// The exact value of a float16, by its definition.
double value_of(Float16 half) {
  const int exponent = (half.bits >> 10) & 31;
  const int fraction = half.bits & 1023;
  const double sign = (half.bits & 0x8000) != 0 ? -1.0 : 1.0;
  if (exponent == 31) return fraction != 0 ? std::numeric_limits<double>::quiet_NaN() : sign * INFINITY;
  return sign * (exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25));
}

void every_float16_is_widened_and_comes_back() {
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const Float16 half{static_cast<std::uint16_t>(bits)};
    const double value = value_of(half);
    const float wide = widen(half);
    Float16 back{};
    narrow(wide, back);
    if (std::isnan(value)) {
      CHECK(std::isnan(wide) && std::isnan(value_of(back)));
    } else {
      CHECK(static_cast<double>(wide) == value && std::signbit(wide) == ((bits & 0x8000) != 0));
      CHECK_EQ(back.bits, half.bits);
    }
  }
}

// Between each two neighbours: halfway goes to the even one, and the nearest float on either side to its own.
void floats_round_to_the_nearest_even_float16() {
  const auto rounded = [](float value) {
    Float16 half{};
    narrow(value, half);
    return half.bits;
  };
  for (std::uint16_t low = 0; low < 0x7BFF; ++low) {
    const auto high = static_cast<std::uint16_t>(low + 1);
    const auto middle = static_cast<float>((value_of({low}) + value_of({high})) / 2);
    CHECK_EQ(rounded(middle), low % 2 == 0 ? low : high);
    CHECK_EQ(rounded(std::nextafter(middle, 0.0F)), low);
    CHECK_EQ(rounded(std::nextafter(middle, 1e9F)), high);
    CHECK_EQ(rounded(-std::nextafter(middle, 1e9F)), high | 0x8000);
  }
  CHECK_EQ(rounded(std::nextafter(65520.0F, 0.0F)), 0x7BFF);
  CHECK_EQ(rounded(65520.0F), 0x7C00);
  CHECK_EQ(rounded(std::numeric_limits<float>::max()), 0x7C00);
  CHECK_EQ(rounded(-INFINITY), 0xFC00);
}

void floats_round_to_the_nearest_even_bfloat16() {
  check::Random random{3};
  for (int i = 0; i < 200'000; ++i) {
    const auto value = std::bit_cast<float>(static_cast<std::uint32_t>(random.next()));
    BFloat16 got{};
    narrow(value, got);
    if (std::isnan(value)) {
      CHECK(std::isnan(widen(got)));
      continue;
    }
    const auto low = static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(value) >> 16);
    const std::uint32_t beyond = std::bit_cast<std::uint32_t>(value) & 0xFFFF;
    const bool up = beyond > 0x8000 || (beyond == 0x8000 && low % 2 == 1);
    CHECK_EQ(got.bits, static_cast<std::uint16_t>(low + (up ? 1 : 0)));
  }
}

// One element by the definition, in the words of the standard library.
template <class Real>
Real oracle(Real target, Real online, double tau, bool fused) {
  if (tau == 1.0) return online;
  const auto weight = static_cast<Real>(tau);
  const bool is_small = std::abs(weight) < Real{0.5};
  const Real factor = is_small ? weight : weight - Real{1};
  const Real base = is_small ? target : online;
  if (fused) return std::fma(factor, online - target, base);
  const volatile Real product = factor * (online - target);
  return product + base;
}

double read(Dtype dtype, const std::byte* data) {
  const auto as = [data]<class T>(T value) {
    std::memcpy(&value, data, sizeof(value));
    return value;
  };
  if (dtype == Dtype::kFloat32) return static_cast<double>(as(float{}));
  if (dtype == Dtype::kFloat64) return as(double{});
  return static_cast<double>(dtype == Dtype::kFloat16 ? widen(as(Float16{})) : widen(as(BFloat16{})));
}

void write(Dtype dtype, std::byte* data, double value) {
  const auto put = [data](auto stored) { std::memcpy(data, &stored, sizeof(stored)); };
  if (dtype == Dtype::kFloat32) return put(static_cast<float>(value));
  if (dtype == Dtype::kFloat64) return put(value);
  if (dtype == Dtype::kFloat16) {
    Float16 half{};
    narrow(static_cast<float>(value), half);
    return put(half);
  }
  BFloat16 half{};
  narrow(static_cast<float>(value), half);
  put(half);
}

// The real numbers that an element of this dtype is made of.
struct Parts {
  Dtype dtype;
  std::size_t count;
};

Parts parts_of(Dtype dtype) {
  if (dtype == Dtype::kComplex64) return {Dtype::kFloat32, 2};
  if (dtype == Dtype::kComplex128) return {Dtype::kFloat64, 2};
  return {dtype, 1};
}

// Memory of one pair, misaligned as asked, between canaries.
struct Tensors {
  Tensors(const Kind& kind_, std::size_t count_, std::size_t shift)
      : kind{kind_},
        count{count_},
        target(size_of(kind.target) * (count + shift + 16), std::byte{0xEE}),
        online(size_of(kind.online) * (count + shift + 16), std::byte{0xEE}),
        master(count + shift + 16, -77.0F),
        target_first{size_of(kind.target) * shift},
        online_first{size_of(kind.online) * (shift / 2)},
        master_first{shift} {
    check::Random random{count * 31 + shift};
    const auto fill = [&](Dtype dtype, std::byte* data) {
      const Parts parts = parts_of(dtype);
      const std::size_t size = size_of(parts.dtype);
      for (std::size_t i = 0; i < count * parts.count; ++i) {
        if (dtype == Dtype::kBytes) {
          data[i] = static_cast<std::byte>(random.below(256));
        } else {
          write(parts.dtype, data + i * size, static_cast<double>(random.below(1 << 20)) / (1 << 17) - 4);
        }
      }
    };
    fill(kind.target, target.data() + target_first);
    fill(kind.online, online.data() + online_first);
    // A master that is not quite what the target shows.
    for (std::size_t i = 0; i < count && kind.has_master; ++i) {
      master[master_first + i] = static_cast<float>(read(kind.target, target.data() + target_first + 2 * i)) * 1.0001F;
    }
  }

  [[nodiscard]] Pair pair(bool is_copied = false) {
    return {{target.data() + target_first, online.data() + online_first,
             kind.has_master ? master.data() + master_first : nullptr, 0, kind.target, kind.online, is_copied},
            count};
  }

  Kind kind;
  std::size_t count;
  std::vector<std::byte> target, online;
  std::vector<float> master;
  std::size_t target_first, online_first, master_first;
};

void update_by_definition(Tensors& tensors, double tau, bool fused) {
  const Parts parts = parts_of(tensors.kind.target);
  const std::size_t size = size_of(parts.dtype), online_size = size_of(parts_of(tensors.kind.online).dtype);
  for (std::size_t i = 0; i < tensors.count * parts.count; ++i) {
    std::byte* target = tensors.target.data() + tensors.target_first + i * size;
    const std::byte* online = tensors.online.data() + tensors.online_first + i * online_size;
    if (tensors.kind.target == Dtype::kBytes) {
      *target = *online;
      continue;
    }
    const double to = read(parts.dtype, target);
    const double from = read(parts_of(tensors.kind.online).dtype, online);
    if (parts.dtype == Dtype::kFloat64) {
      write(parts.dtype, target, oracle(to, from, tau, fused && parts.count == 1));
    } else if (tensors.kind.has_master) {
      float& master = tensors.master[tensors.master_first + i];
      master = oracle(master, static_cast<float>(from), tau, fused);
      write(parts.dtype, target, static_cast<double>(master));
    } else {
      const float moved = oracle(static_cast<float>(to), static_cast<float>(from), tau, fused && parts.count == 1);
      write(parts.dtype, target, static_cast<double>(moved));
    }
  }
}

void expect_same(const Tensors& got, const Tensors& expected) {
  CHECK(got.target == expected.target);  // the canaries included
  CHECK(got.online == expected.online);
  CHECK(got.master == expected.master);
}

std::vector<Level> levels() {
  std::vector<Level> found{Level::kBaseline};
  for (const Level level : {Level::kAvx2, Level::kAvx512}) {
    if (level <= best_level()) found.push_back(level);
  }
  return found;
}

bool is_fused(Level level) {
#if defined(__aarch64__)
  return true;
#else
  return level != Level::kBaseline;
#endif
}

// With both sides of a chunk of the CPU's and of the CUDA kernels'.
const std::vector<std::size_t> kCounts{
    1, 2, 7, 15, 16, 17, 33, 511, 1023, 1024, 1025, 2047, 2049, 3333, kChunkElements - 1, kChunkElements + 5};

void every_kind_moves_by_the_definition() {
  for (const Kind& kind : kinds()) {
    for (const std::size_t count : kCounts) {
      for (const std::size_t shift : {0, 1, 3}) {
        for (const double tau : kTaus) {
          for (const Level level : levels()) {
            Tensors got{kind, count, shift}, expected{kind, count, shift};
            const Pair pair = got.pair();
            update(chunks_of({&pair, 1}), tau, level);
            update_by_definition(expected, tau, is_fused(level));
            expect_same(got, expected);
          }
        }
      }
    }
  }
}

// Runs the launches that pairs become, but for threads other than `only`, where there is one.
template <class Updates = fastreplay::Updates>
void update_as_cuda_does(std::span<const Pair> pairs, double tau, const double* tau_on_device = nullptr,
                         int only = -1) {
  Updates updates;
  updates.share = Share::of(tau, tau_on_device, true);
  while (!pairs.empty()) {
    const Chunk first = pairs.front().chunk;
    if (take_launch(pairs, updates) == 0) continue;
    for (std::uint32_t chunk = updates.num_chunks; chunk > 0; --chunk) {
      visit_kind(first, [&](auto kind) {
        // In an order of no meaning: each thread has its own share.
        for (unsigned thread = kThreadsPerChunk; thread > 0; --thread) {
          if (only < 0 || thread - 1 == static_cast<unsigned>(only))
            update_share<decltype(kind)>(updates, chunk - 1, thread - 1);
        }
      });
    }
  }
}

void the_cuda_kernel_moves_by_the_definition() {
  for (const Kind& kind : kinds()) {
    if (parts_of(kind.target).count == 2) continue;  // complex tensors stay with torch
    for (const std::size_t count : kCounts) {
      for (const std::size_t shift : {0, 1, 2, 4}) {
        for (const double tau : {0.0, 0.005, 0.7, 1.0}) {
          Tensors got{kind, count, shift}, expected{kind, count, shift};
          const Pair pair = got.pair();
          update_as_cuda_does({&pair, 1}, tau);
          update_by_definition(expected, tau, true);
          expect_same(got, expected);
        }
      }
    }
  }
}

// More pairs than one launch takes, of all kinds in turns, empty ones and such of many chunks among them; tau is read
// where the device has it.
void cuda_launches_cover_every_pair() {
  const std::size_t many = ManyUpdates::kMaxEntries + 40;
  for (const std::size_t num_same : {std::size_t{1}, std::size_t{Updates::kMaxEntries}, std::size_t{250}, many}) {
    std::vector<Tensors> got, expected;
    for (const Kind& kind : kinds()) {
      if (parts_of(kind.target).count == 2) continue;
      for (std::size_t i = 0; i < num_same; ++i) {
        const std::size_t count = i % 7 == 3 ? 0 : i % 50 == 0 ? 5 * kChunkElements + i : i + 1;
        got.emplace_back(kind, count, i % 3), expected.emplace_back(kind, count, i % 3);
      }
    }
    std::vector<Pair> pairs;
    for (Tensors& tensors : got) pairs.push_back(tensors.pair());
    const double tau = 0.3;
    num_same < 250 ? update_as_cuda_does(pairs, 0.9, &tau) : update_as_cuda_does<ManyUpdates>(pairs, 0.9, &tau);
    for (std::size_t i = 0; i < got.size(); ++i) {
      update_by_definition(expected[i], tau, true);
      expect_same(got[i], expected[i]);
    }
  }
}

// One launch for what is of one kind, with the bytes after it.
void pairs_of_one_kind_go_together() {
  std::vector<float> values(10);
  std::vector<Pair> pairs;
  const auto add = [&](Dtype target, Dtype online, std::size_t count) {
    pairs.push_back({{values.data(), values.data(), nullptr, 0, target, online, false}, count});
  };
  const auto num_launches = [&] {
    std::span<const Pair> rest{pairs};
    Updates updates;
    std::size_t count = 0;
    while (!rest.empty()) count += take_launch(rest, updates) > 0 ? 1 : 0;
    return count;
  };
  for (std::size_t i = 0; i + 1 < Updates::kMaxEntries; ++i) add(Dtype::kFloat32, Dtype::kFloat32, 5000);
  add(Dtype::kBytes, Dtype::kBytes, 40);
  CHECK_EQ(num_launches(), 1U);
  add(Dtype::kBytes, Dtype::kBytes, 40);
  CHECK_EQ(num_launches(), 2U);
  pairs.resize(1);
  add(Dtype::kFloat32, Dtype::kBFloat16, 10);
  add(Dtype::kBytes, Dtype::kBytes, 0);
  CHECK_EQ(num_launches(), 2U);
  pairs = {pairs.back()};
  CHECK_EQ(num_launches(), 0U);
}

// Each element is the share of exactly one thread, on the aligned path and on the other.
void each_element_has_one_cuda_thread() {
  for (const std::size_t shift : {0, 1}) {
    for (const std::size_t count : kCounts) {
      std::vector<int> moved(count, 0);
      for (unsigned thread = 0; thread < kThreadsPerChunk; ++thread) {
        Tensors tensors{{Dtype::kFloat32, Dtype::kFloat32, false}, count, shift};
        const Tensors before = tensors;
        const Pair pair = tensors.pair();
        update_as_cuda_does({&pair, 1}, 1.0, nullptr, static_cast<int>(thread));
        for (std::size_t i = 0; i < count; ++i) {
          const std::size_t at = tensors.target_first + 4 * i;
          moved[i] += std::memcmp(&tensors.target[at], &before.target[at], 4) == 0 ? 0 : 1;
        }
      }
      CHECK(std::ranges::all_of(moved, [](int times) { return times == 1; }));
    }
  }
}

void copies_do_not_heed_tau() {
  for (const Kind& kind : kinds()) {
    if (kind.has_master) continue;
    for (const bool as_cuda : {false, true}) {
      if (as_cuda && parts_of(kind.target).count == 2) continue;
      Tensors got{kind, 100, 0}, expected{kind, 100, 0};
      const Pair pair = got.pair(true);
      if (as_cuda) {
        update_as_cuda_does({&pair, 1}, 0.005);
      } else {
        update(chunks_of({&pair, 1}), 0.005, best_level());
      }
      update_by_definition(expected, 1.0, true);
      expect_same(got, expected);
    }
  }
}

// tau = 1 is a copy, which heals a target of NaN and keeps the sign of a zero.
void hard_updates_copy_every_bit() {
  const std::vector<float> online{-0.0F, 1.0F, INFINITY, 5.0F, std::nanf("7")};
  for (const bool as_cuda : {false, true}) {
    std::vector<float> target{2.0F, NAN, 3.0F, -INFINITY, 1.0F};
    const Pair pair{{target.data(), online.data(), nullptr, 0, Dtype::kFloat32, Dtype::kFloat32, false}, 5};
    if (as_cuda) {
      update_as_cuda_does({&pair, 1}, 1.0);
    } else {
      update(chunks_of({&pair, 1}), 1.0, best_level());
    }
    CHECK(std::memcmp(target.data(), online.data(), 20) == 0);
  }
}

void chunks_cover_every_element_once() {
  for (const Kind& kind : kinds()) {
    std::vector<Tensors> tensors;
    for (const std::size_t count : {0, 1, 4095, 4096, 4097, 16384, 50000}) tensors.emplace_back(kind, count, 1);
    std::vector<Pair> pairs;
    for (Tensors& tensor : tensors) pairs.push_back(tensor.pair());
    const std::vector<Chunk> chunks = chunks_of(pairs);
    std::size_t at = 0;
    for (const Pair& pair : pairs) {
      std::size_t covered = 0;
      while (covered < pair.num_elements) {
        const Chunk& chunk = chunks.at(at++);
        CHECK(chunk.num_elements > 0);
        CHECK(chunk.num_elements * size_of(kind.target) <= 16 * kChunkElements);
        CHECK(chunk.target == static_cast<std::byte*>(pair.chunk.target) + covered * size_of(kind.target));
        CHECK(chunk.online == static_cast<const std::byte*>(pair.chunk.online) + covered * size_of(kind.online));
        CHECK(chunk.master == (kind.has_master ? pair.chunk.master + covered : nullptr));
        CHECK(chunk.target_dtype == kind.target && chunk.online_dtype == kind.online);
        covered += chunk.num_elements;
      }
      CHECK_EQ(covered, pair.num_elements);
    }
    CHECK_EQ(at, chunks.size());
  }
}

void only_known_pairs_are_supported() {
  const auto supported = [](Dtype target, Dtype online, float* master = nullptr) {
    return is_supported({nullptr, nullptr, master, 0, target, online, false});
  };
  float master = 0;
  CHECK_EQ(kinds().size(), 15U);
  CHECK(supported(Dtype::kFloat32, Dtype::kBFloat16));
  CHECK(supported(Dtype::kBFloat16, Dtype::kFloat32, &master));
  CHECK(!supported(Dtype::kFloat32, Dtype::kFloat32, &master));
  CHECK(!supported(Dtype::kFloat32, Dtype::kFloat64));
  CHECK(!supported(Dtype::kFloat64, Dtype::kFloat32));
  CHECK(!supported(Dtype::kFloat16, Dtype::kBFloat16));
  CHECK(!supported(Dtype::kComplex64, Dtype::kFloat32));
}

template <class Real>
void averages_round_the_scaled_target_first(Dtype dtype) {
  check::Random random{11};
  const auto value = [&] { return static_cast<Real>(static_cast<double>(random.next() >> 11) * 0x1p-53 - 0.5); };
  for (const std::size_t count : {1, 7, 31, 64, 4096, 5003}) {
    for (const double tau : kTaus) {
      std::vector<Real> start(count), online(count);
      for (std::size_t i = 0; i < count; ++i) start[i] = value(), online[i] = value();
      const auto keep = static_cast<Real>(1 - tau), take = static_cast<Real>(tau);
      for (int level = 0; level <= static_cast<int>(best_level()); ++level) {
        std::vector<Real> target = start;
        const Pair pair{{target.data(), online.data(), nullptr, 0, dtype, dtype, false}, count};
        average(chunks_of({&pair, 1}), 1 - tau, tau, static_cast<Level>(level));
#if defined(__aarch64__)
        const bool fused = true;
#else
        const bool fused = level != static_cast<int>(Level::kBaseline);
#endif
        bool is_same = true;
        for (std::size_t i = 0; i < count; ++i) {
          const volatile Real kept = keep * start[i];
          const volatile Real taken = take * online[i];
          is_same &= target[i] == (fused ? std::fma(take, online[i], static_cast<Real>(kept)) : kept + taken);
        }
        CHECK(is_same);
      }
    }
  }
}

}  // namespace

int main() {
  every_float16_is_widened_and_comes_back();
  floats_round_to_the_nearest_even_float16();
  floats_round_to_the_nearest_even_bfloat16();
  only_known_pairs_are_supported();
  chunks_cover_every_element_once();
  every_kind_moves_by_the_definition();
  the_cuda_kernel_moves_by_the_definition();
  cuda_launches_cover_every_pair();
  pairs_of_one_kind_go_together();
  each_element_has_one_cuda_thread();
  copies_do_not_heed_tau();
  hard_updates_copy_every_bit();
  averages_round_the_scaled_target_first<float>(Dtype::kFloat32);
  averages_round_the_scaled_target_first<double>(Dtype::kFloat64);
  return check::result();
}
