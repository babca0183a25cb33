// SPDX-License-Identifier: MIT
// Target updates on a device beside the same arithmetic on the CPU, bit for bit.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <span>
#include <utility>
#include <vector>

#include "../cpp/check.hpp"
#include "device.hpp"
#include "target.h"
#include "target/chunks.hpp"
#include "target/lerp.hpp"

namespace target_cases {

using cuda::Array;
using cuda::Bytes;
using fastreplay::BFloat16;
using fastreplay::Dtype;
using fastreplay::Float16;
using fastreplay::Formula;
using fastreplay::Pair;
using fastreplay::Weight;

template <class Real>
Real moved(Real target, Real online, double tau) {
  const auto weight = Weight<Real>::of(tau);
  if (weight.formula == Formula::kFromTarget) {
    return fastreplay::lerp<true, Formula::kFromTarget>(target, online, weight.factor);
  }
  if (weight.formula == Formula::kFromOnline) {
    return fastreplay::lerp<true, Formula::kFromOnline>(target, online, weight.factor);
  }
  return online;
}

template <class T>
T& as(std::byte* data, std::size_t i) {
  return reinterpret_cast<T*>(data)[i];
}

inline float read(Dtype dtype, std::byte* data, std::size_t i) {
  if (dtype == Dtype::kFloat32) return as<float>(data, i);
  return dtype == Dtype::kFloat16 ? fastreplay::widen(as<Float16>(data, i)) : fastreplay::widen(as<BFloat16>(data, i));
}

inline void write(Dtype dtype, std::byte* data, std::size_t i, float value) {
  if (dtype == Dtype::kFloat32) {
    as<float>(data, i) = value;
  } else if (dtype == Dtype::kFloat16) {
    fastreplay::narrow(value, as<Float16>(data, i));
  } else {
    fastreplay::narrow(value, as<BFloat16>(data, i));
  }
}

// A pair of tensors whose first `shift` elements are not theirs.
class Case {
 public:
  Case(Dtype target, Dtype online, bool has_master, bool is_copied, std::size_t count, std::size_t shift)
      : target_dtype_{target},
        online_dtype_{online},
        has_master_{has_master},
        is_copied_{is_copied},
        count_{count},
        shift_{shift},
        before_{Bytes((count + shift) * size_of(target)), Bytes((count + shift) * size_of(online)),
                Bytes(has_master ? (count + shift) * sizeof(float) : sizeof(float))},
        arrays_{Array{before_[0].size()}, Array{before_[1].size()}, Array{before_[2].size()}} {
    check::Random random{count * 31 + shift};
    fill(target, before_[0], random);
    fill(online, before_[1], random);
    fill(Dtype::kFloat32, before_[2], random);
    expected_ = before_;
  }

  void start() {
    expected_ = before_;
    for (std::size_t i = 0; i < arrays_.size(); ++i) arrays_[i].set(before_[i]);
  }

  [[nodiscard]] Pair pair() const {
    return {{arrays_[0].at(shift_ * size_of(target_dtype_)), arrays_[1].at(shift_ * size_of(online_dtype_)),
             has_master_ ? arrays_[2].at<float>(shift_ * sizeof(float)) : nullptr, 0, target_dtype_, online_dtype_,
             is_copied_},
            count_};
  }

  void expect_moved(double tau) {
    if (is_copied_) tau = 1.0;
    std::byte *target = expected_[0].data(), *online = expected_[1].data(), *master = expected_[2].data();
    for (std::size_t i = shift_; i < shift_ + count_; ++i) {
      if (target_dtype_ == Dtype::kBytes) {
        target[i] = online[i];
      } else if (target_dtype_ == Dtype::kFloat64) {
        as<double>(target, i) = moved(as<double>(target, i), as<double>(online, i), tau);
      } else {
        const float start = has_master_ ? as<float>(master, i) : read(target_dtype_, target, i);
        const float end = moved(start, read(online_dtype_, online, i), tau);
        if (has_master_) as<float>(master, i) = end;
        write(target_dtype_, target, i, end);
      }
    }
  }

  // With what lies before and, being at the end of its allocation, nothing after.
  [[nodiscard]] bool is_as_expected() const {
    for (std::size_t i = 0; i < arrays_.size(); ++i) {
      if (arrays_[i].get() != expected_[i]) return false;
    }
    return true;
  }

 private:
  // Finite, some of them subnormal and some of them zeros of either sign: a NaN's bits are the machine's.
  static void fill(Dtype dtype, Bytes& bytes, check::Random& random) {
    for (std::size_t i = 0; i < bytes.size() / size_of(dtype); ++i) {
      const double value = static_cast<double>(random.below(1 << 20)) / (1 << 17) - 4;
      const double scale = i % 11 == 0 ? 0x1p-130 : i % 13 == 0 ? 0x1p-20 : i % 17 == 0 ? 0.0 : 1.0;
      if (dtype == Dtype::kBytes) {
        bytes[i] = static_cast<std::byte>(random.below(256));
      } else if (dtype == Dtype::kFloat64) {
        as<double>(bytes.data(), i) = value * (i % 11 == 0 ? 0x1p-1060 : scale);
      } else {
        write(dtype, bytes.data(), i, static_cast<float>(value * scale));
      }
    }
  }

  Dtype target_dtype_, online_dtype_;
  bool has_master_, is_copied_;
  std::size_t count_, shift_;
  std::array<Bytes, 3> before_, expected_;  // target, online, master
  std::array<Array, 3> arrays_;
};

inline std::vector<Case> all_cases() {
  std::vector<Case> cases;
  for (int target = 0; target <= static_cast<int>(Dtype::kBytes); ++target) {
    for (int online = 0; online <= static_cast<int>(Dtype::kBytes); ++online) {
      for (const bool has_master : {false, true}) {
        float master = 0;
        const fastreplay::Chunk chunk{.target = nullptr,
                                      .online = nullptr,
                                      .master = has_master ? &master : nullptr,
                                      .num_elements = 0,
                                      .target_dtype = static_cast<Dtype>(target),
                                      .online_dtype = static_cast<Dtype>(online),
                                      .is_copied = false};
        const bool is_complex = chunk.target_dtype == Dtype::kComplex64 || chunk.target_dtype == Dtype::kComplex128;
        if (!is_supported(chunk) || is_complex) continue;  // complex tensors stay with torch
        for (const std::size_t count : {1, 2, 7, 16, 33, 1023, 4095, 4101}) {
          for (const std::size_t shift : {0, 1, 2}) {
            cases.emplace_back(chunk.target_dtype, chunk.online_dtype, has_master, false, count, shift);
          }
        }
        if (!has_master) cases.emplace_back(chunk.target_dtype, chunk.online_dtype, has_master, true, 257, 1);
      }
    }
  }
  return cases;
}

// Where a launch finds tau.
enum class Place : std::uint8_t { kHost, kFloatOnDevice, kDoubleOnDevice };

class Launch {
 public:
  Launch(Place place, double tau) : place_{place} { set(tau); }

  void set(double tau) {
    tau_ = place_ == Place::kFloatOnDevice ? static_cast<double>(static_cast<float>(tau)) : tau;
    if (place_ == Place::kFloatOnDevice) on_device_.set(cuda::bytes_of(std::vector{static_cast<float>(tau)}));
    if (place_ == Place::kDoubleOnDevice) on_device_.set(cuda::bytes_of(std::vector{tau}));
  }

  // The tau that the device goes by.
  [[nodiscard]] double tau() const { return tau_; }

  void queue(const cuda::Stream& stream, std::span<const Pair> pairs) const {
    const bool is_double = place_ == Place::kDoubleOnDevice;
    const double host = place_ == Place::kHost ? tau_ : std::numeric_limits<double>::quiet_NaN();
    cuda::ok(fastreplay_cuda_update_targets(0, stream.get(), pairs.data(), static_cast<std::int64_t>(pairs.size()),
                                            host, place_ == Place::kHost ? nullptr : on_device_.at(), is_double),
             "fastreplay_cuda_update_targets");
  }

 private:
  Place place_;
  double tau_ = 0;
  Array on_device_{sizeof(double)};
};

inline std::vector<Pair> pairs_of(const std::vector<Case>& cases) {
  std::vector<Pair> pairs;
  for (const Case& each : cases) pairs.push_back(each.pair());
  return pairs;
}

inline void check_all(const std::vector<Case>& cases) {
  for (const Case& each : cases) {
    CHECK(each.is_as_expected());
  }
}

// All pairs in one call, for each tau that takes another formula.
inline void every_pair_moves_as_on_the_cpu(bool is_brief) {
  std::vector<Case> cases = all_cases();
  const cuda::Stream stream;
  std::vector<double> taus{0.005, 0.7, 1.0};
  if (!is_brief) taus.insert(taus.end(), {0.0, 1e-8, std::nextafter(0.5, 0.0), 0.5, std::nextafter(0.5, 1.0), 0.999});
  for (const double tau : taus) {
    for (const Place place : {Place::kHost, Place::kFloatOnDevice, Place::kDoubleOnDevice}) {
      const Launch launch{place, tau};
      const std::vector<Pair> pairs = pairs_of(cases);
      // As the launch that takes many pairs, and as the one that takes few.
      for (const std::size_t at_once : {pairs.size(), std::size_t{100}}) {
        for (Case& each : cases) each.start(), each.expect_moved(launch.tau());
        cuda::finish();
        for (std::span<const Pair> rest{pairs}; !rest.empty(); rest = rest.subspan(std::min(at_once, rest.size()))) {
          launch.queue(stream, rest.first(std::min(at_once, rest.size())));
        }
        cuda::finish();
        check_all(cases);
      }
    }
  }
}

// More chunks than one launch takes, beside a pair of one element and no pair at all.
inline void a_large_pair_moves_whole() {
  std::vector<Case> cases;
  cases.emplace_back(Dtype::kFloat32, Dtype::kFloat32, false, false, 5'000'003, 0);
  cases.emplace_back(Dtype::kFloat32, Dtype::kFloat32, false, false, 1, 1);
  cases.emplace_back(Dtype::kBFloat16, Dtype::kFloat32, true, false, 700'001, 1);
  const cuda::Stream stream;
  const Launch launch{Place::kHost, 0.3};
  for (Case& each : cases) each.start(), each.expect_moved(0.3);
  cuda::finish();
  launch.queue(stream, {});
  launch.queue(stream, pairs_of(cases));
  cuda::finish();
  check_all(cases);
}

// A NaN or an infinity of the target is gone, the online network's is there, and so is a zero's sign.
inline void hard_updates_copy_every_bit() {
  const std::vector<float> online{-0.0F, 1.0F, INFINITY, 5.0F, std::bit_cast<float>(0x7FC00007U)};
  const Array source{cuda::bytes_of(online)};
  const Array target{cuda::bytes_of(std::vector<float>{2.0F, NAN, 3.0F, -INFINITY, 1.0F})};
  const Pair pair{{target.at(), source.at(), nullptr, 0, Dtype::kFloat32, Dtype::kFloat32, false}, 5};
  const cuda::Stream stream;
  Launch{Place::kHost, 1.0}.queue(stream, {&pair, 1});
  cuda::finish();
  CHECK(target.get() == source.get());
}

// A graph needs nothing of the host's that it was captured with, and reads tau anew.
inline void a_captured_update_is_its_own() {
  std::vector<Case> cases = all_cases();
  const cuda::Stream stream;
  Launch launch{Place::kDoubleOnDevice, 0.25};
  std::vector<Pair> pairs = pairs_of(cases);
  const cuda::Graph graph{stream, [&] { launch.queue(stream, pairs); }};
  std::memset(static_cast<void*>(pairs.data()), 0xEE, pairs.size() * sizeof(Pair));
  for (Case& each : cases) each.start();
  for (const double tau : {0.25, 0.75}) {
    launch.set(tau);
    cuda::finish();
    graph.replay(stream);
    cuda::finish();
    for (Case& each : cases) each.expect_moved(tau);
    check_all(cases);
  }
}

inline void check_updates(bool is_brief) {
  cuda::ok(fastreplay_cuda_prepare_updates(0), "fastreplay_cuda_prepare_updates");
  every_pair_moves_as_on_the_cpu(is_brief);
  a_large_pair_moves_whole();
  hard_updates_copy_every_bit();
  a_captured_update_is_its_own();
}

}  // namespace target_cases
