// SPDX-License-Identifier: MIT
// What surrounds rows on a device: links and a rule in what stands for its memory, and the kernels on them, all threads
// by turns in a random order, as none may count on another.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <span>
#include <type_traits>
#include <vector>

#include "batch/windows.hpp"
#include "check.hpp"
#include "followed_draw.hpp"
#include "followed_gather.hpp"
#include "following.h"
#include "lanes/lanes.hpp"
#include "lanes/sent_links.hpp"
#include "linking_kernel.hpp"
#include "masses_there.hpp"
#include "pieces_there.hpp"
#include "trajectory_rows.hpp"

namespace following_there {

using fastreplay::Block;
using fastreplay::Lanes;
using fastreplay::Ring;
using fastreplay::SentLinks;
using fastreplay::Source;
using fastreplay::Steps;
using fastreplay::WindowRule;

template <class Run>
void by_turns(std::uint64_t num_threads, check::Random& random, Run run) {
  std::vector<std::uint64_t> order(num_threads);
  std::iota(order.begin(), order.end(), std::uint64_t{0});
  for (std::size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random.below(i)]);
  for (const std::uint64_t thread : order) run(thread);
}

// Links as they were sent, in runs as fastreplay/gpu/mirror.py cuts them.
class Links {
 public:
  Links(Ring& ring, const Lanes& lanes) : ring_{ring}, sent_{lanes}, links_(ring.capacity(), {77, 88}) {}

  [[nodiscard]] fastreplay_cuda_link* data() { return links_.data(); }

  // Sends what came since the last time. Returns what may be drawn from.
  fastreplay_cuda_window flush(std::size_t stage, check::Random& random) {
    const fastreplay::Window now = ring_.window();
    std::vector<std::uint32_t> changes;
    for (const auto& [slot, after] : sent_.changes()) changes.insert(changes.end(), {slot, after});
    complete({.links = data(),
              .capacity = ring_.capacity(),
              .first_slot = 0,
              .count = 0,
              .changes = changes.data(),
              .num_changes = changes.size() / 2},
             random);
    for (std::uint64_t ticket = std::max(end_, now.first); ticket < now.end;) {
      const std::size_t slot = ticket % ring_.capacity();
      const std::size_t count = std::min({now.end - ticket, ring_.capacity() - slot, stage});
      std::vector<SentLinks::Link> read(count);
      sent_.read(ticket, read);
      for (std::size_t i = 0; i < count; ++i) links_[slot + i] = {read[i].before, read[i].after};
      complete({.links = data(),
                .capacity = ring_.capacity(),
                .first_slot = slot,
                .count = count,
                .changes = nullptr,
                .num_changes = 0},
               random);
      ticket += count;
    }
    end_ = now.end;
    return {.first = now.first, .size = now.reserved(), .first_slot = now.first % ring_.capacity()};
  }

 private:
  static void complete(const fastreplay_cuda_linking& linking, check::Random& random) {
    by_turns(fastreplay::num_link_threads(linking) + 3, random,
             [&](std::uint64_t thread) { fastreplay::link_share(linking, thread); });
  }

  Ring& ring_;
  SentLinks sent_;
  std::vector<fastreplay_cuda_link> links_;
  std::uint64_t end_ = 0;
};

// What becomes of a block's parts by a rule, in pieces of at most so many bytes: fastreplay/gpu/following.py.
inline std::vector<fastreplay_cuda_made> made_of(const Ring& ring, const WindowRule& rule, const Block& block,
                                                 std::size_t piece_bytes) {
  const auto& parts = block.layout().parts();
  const auto& offsets = block.layout().offsets();
  std::vector<fastreplay_cuda_made> made;
  const auto cut = [&](fastreplay_cuda_making making, std::size_t field, std::size_t part, const Steps& steps) {
    for (const auto& piece :
         pieces_there::pieces_of(ring.records().layout(), field, offsets[part], piece_bytes, parts[part].conversion)) {
      made.push_back({piece, static_cast<std::uint64_t>(making), steps.first, steps.count, steps.stride});
    }
  };
  for (std::size_t part = 0; part < parts.size(); ++part) {
    if (parts[part].source == Source::kStart) cut(FASTREPLAY_CUDA_OF_START, parts[part].field, part, {});
    if (parts[part].source == Source::kEnd) cut(FASTREPLAY_CUDA_OF_END, parts[part].field, part, {});
  }
  for (const WindowRule::Taken& taken : rule.taken) {
    const auto making = taken.is_first_only     ? FASTREPLAY_CUDA_OF_FIRST
                        : taken.pads_with_zeros ? FASTREPLAY_CUDA_OF_STEPS_OR_0
                                                : FASTREPLAY_CUDA_OF_STEPS;
    for (std::size_t i = 0; i < taken.fields.size(); ++i) cut(making, taken.fields[i], taken.parts[i], taken.steps);
  }
  for (const WindowRule::Said& said : rule.said) {
    const auto making = static_cast<std::uint64_t>(FASTREPLAY_CUDA_SAY_THERE) + static_cast<std::uint64_t>(said.what);
    made.push_back({pieces_there::piece(0, offsets[said.part], 1, 1), making, said.steps.first, said.steps.count,
                    said.steps.stride});
  }
  if (!rule.sums) return made;
  for (const auto& [of, part] : rule.sums->sums) {
    const std::size_t num_bytes = of.is_double ? 8 : 4;
    const auto making = of.is_double ? FASTREPLAY_CUDA_SUM_DOUBLES : FASTREPLAY_CUDA_SUM_FLOATS;
    made.push_back({pieces_there::piece(of.column.offset, offsets[part], of.column.row_bytes, num_bytes),
                    static_cast<std::uint64_t>(making), 0, of.column.row_bytes / num_bytes, 1});
  }
  const bool is_double = rule.sums->is_discount_double;
  const auto making = is_double ? FASTREPLAY_CUDA_DISCOUNT_DOUBLE : FASTREPLAY_CUDA_DISCOUNT_FLOAT;
  const std::uint64_t num_bytes = is_double ? 8 : 4;
  made.push_back({pieces_there::piece(0, offsets[rule.sums->discount_part], num_bytes, num_bytes),
                  static_cast<std::uint64_t>(making), 0, 1, 1});
  return made;
}

inline fastreplay_cuda_following following_of(const Ring& ring, const WindowRule& rule, const Block& block,
                                              fastreplay_cuda_link* links, std::span<const fastreplay_cuda_made> made) {
  fastreplay_cuda_following following{};
  following.links = links;
  following.most_before = rule.most_before;
  following.most_after = rule.most_after;
  following.is_redrawn = rule.is_redrawn;
  following.is_time_major = rule.is_time_major;
  following.ways_offset = block.layout().offsets()[rule.ways_part];
  following.way_bytes = block.layout().parts()[rule.ways_part].row_bytes;
  if (rule.sums) {
    following.gamma = rule.sums->gamma;
    for (const fastreplay::FloatField& stored : rule.sums->stored_discount) {
      following.discount_bytes = stored.is_double ? 8 : 4;
      following.discount_offset = stored.column.offset;
    }
  }
  following.made = made.data();
  following.num_made = made.size();
  static_cast<void>(ring);
  return following;
}

// Runs the launches of a gather.
template <class Gathering, class Piece>
void gather(Gathering gathering, std::span<const Piece> rest, check::Random& random) {
  while (!rest.empty()) {
    const std::uint64_t num_threads = gathering.take(rest) + 7;  // the last block is seldom whole
    by_turns(num_threads * gathering.num_pieces, random, [&](std::uint64_t i) {
      const std::uint64_t thread = i % num_threads;
      const auto number = static_cast<unsigned>(i / num_threads);
      if constexpr (std::is_same_v<Piece, fastreplay_cuda_piece>) {
        fastreplay::gather_share(gathering, thread, number);
      } else {
        fastreplay::follow_share(gathering, thread, number);
      }
    });
  }
}

// Runs what fastreplay_cuda_sample launches, of transitions by themselves.
inline void sample_alone(const fastreplay_cuda_sampling& sampling, check::Random& random) {
  const auto draw = fastreplay::Draw::of(sampling);
  const fastreplay_cuda_window window = draw.drawn_from();
  *sampling.window = window;
  if (sampling.trajectories != nullptr) {
    masses_there::run_by_turns(fastreplay::TrajectoryRows::of(sampling), random);
  } else if (window.size > 0) {
    by_turns(fastreplay::kDrawThreads, random,
             [&](std::uint64_t thread) { fastreplay::draw_share(draw, window, static_cast<unsigned>(thread)); });
    fastreplay::count_draws(draw);
  }
  if (window.size == 0) return;
  const std::span<const fastreplay_cuda_piece> pieces{sampling.pieces, sampling.num_pieces};
  gather(fastreplay::Gather<fastreplay::GatheredPiece>{sampling}, pieces, random);
  gather(fastreplay::Gather<fastreplay::ShiftedPiece>{sampling}, pieces, random);
}

// The same of what surrounds rows.
inline void sample(const fastreplay_cuda_sampling& sampling, check::Random& random) {
  using fastreplay::FollowedDraw;
  if (sampling.trajectories != nullptr) {
    masses_there::run_by_turns(FollowedDraw<fastreplay::TrajectoryRows>::of(sampling), random);
  } else if (sampling.weighing == nullptr) {
    masses_there::run_by_turns(FollowedDraw<fastreplay::UniformRows>::of(sampling), random);
  } else {
    masses_there::run_by_turns(FollowedDraw<fastreplay::WeighedDraw>::of(sampling), random);
  }
  if (sampling.window->size == 0) return;
  const std::span<const fastreplay_cuda_made> made{sampling.following->made, sampling.following->num_made};
  gather(fastreplay::FollowedGather<fastreplay::GatheredPiece>{sampling}, made, random);
  gather(fastreplay::FollowedGather<fastreplay::ShiftedPiece>{sampling}, made, random);
}

}  // namespace following_there
