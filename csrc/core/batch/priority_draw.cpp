// SPDX-License-Identifier: MIT
#include "batch/priority_draw.hpp"

#include <algorithm>
#include <thread>

#include "batch/draw.hpp"
#include "priority/power.hpp"

namespace fastreplay {

namespace {

// The last word of the counter of what decides whether a row is drawn uniformly, and of the first of what is counted.
constexpr std::uint64_t kMixture = 1;
constexpr std::uint64_t kCounted = 2;

}  // namespace

PriorityDraw::PriorityDraw(Ring& ring, Priorities& priorities, const PriorityOptions& options, Philox::Key key,
                           std::uint64_t call, double beta, const Window& window, const Block& block) noexcept
    : ring_{ring},
      priorities_{priorities},
      options_{options},
      key_{key},
      call_{call},
      beta_{beta},
      oldest_{window.first},
      tickets_{block.tickets()},
      weights_{reinterpret_cast<float*>(block.data() + block.layout().offset_of(Source::kWeight))},
      probabilities_{reinterpret_cast<float*>(block.data() + block.layout().offset_of(Source::kProbability))} {}

bool PriorityDraw::begin() noexcept {
  Priorities::Turn turn{priorities_};
  take(turn);
  const double total = turn.population().total;
  const bool has_mixture = total > 0 && options_.uniform_mix > 0;
  std::size_t num_strata = tickets_.size();
  for (std::size_t row = 0; has_mixture && row < tickets_.size(); ++row) num_strata -= is_uniform(row, 0) ? 1 : 0;
  const double share = options_.is_stratified ? total / static_cast<double>(num_strata) : total;
  WordStream words{key_, call_};
  Targets targets;
  std::size_t stratum = 0;
  for (std::size_t row = 0; row < tickets_.size(); ++row) {
    const std::uint64_t word = words.next();
    if (total == 0 || (has_mixture && is_uniform(row, 0))) {
      std::uint64_t attempt = 0;
      if (!draw_uniformly(turn, row, word)) draw_again(turn, row, attempt, Suitable{});
      continue;
    }
    const double before = options_.is_stratified ? static_cast<double>(stratum++) : 0;
    targets.rows[targets.count] = row;
    targets.values[targets.count] = (before + fraction(word)) * share;
    if (++targets.count == kRowsTogether) find(turn, targets);
  }
  find(turn, targets);
  const bool has_zeros =
      total == 0 || (options_.uniform_mix > 0 && static_cast<double>(turn.population().count) < count_);
  rarest_ = times_as_likely(has_zeros ? 0 : turn.population().smallest);
  return total == 0;
}

bool PriorityDraw::again(std::size_t row, std::uint64_t& attempt, const Suitable& suitable) noexcept {
  Priorities::Turn turn{priorities_};
  return draw_again(turn, row, attempt, suitable);
}

void PriorityDraw::weigh() noexcept {
  const std::span<float> weights{weights_, tickets_.size()};
  auto divisor = 1.0F;
  if (options_.normalize == Normalize::kBatch && !weights.empty()) divisor = *std::ranges::min_element(weights);
  if (options_.normalize == Normalize::kBuffer) divisor = static_cast<float>(rarest_);
  for (float& weight : weights) weight = divisor / weight;
  raise(weights, static_cast<float>(beta_));
}

bool PriorityDraw::is_uniform(std::size_t row, std::uint64_t attempt) const noexcept {
  return fraction(words(row, attempt, kMixture)[0]) < options_.uniform_mix;
}

void PriorityDraw::find(Priorities::Turn& turn, Targets& targets) noexcept {
  std::array<Drawn, kRowsTogether> drawn;
  turn.find({targets.values.data(), targets.count}, {drawn.data(), targets.count});
  for (std::size_t i = 0; i < targets.count; ++i) {
    if (drawn[i].mass > 0) {
      set(targets.rows[i], drawn[i].ticket, drawn[i].mass);
    } else {
      std::uint64_t attempt = 0;
      draw_again(turn, targets.rows[i], attempt, Suitable{});
    }
  }
  targets.count = 0;
}

// Attempts until one succeeds: what stands in its way are rows that are being written, and leaves that have changed
// since the turn began; or where nothing suits, until that is known.
bool PriorityDraw::draw_again(Priorities::Turn& turn, std::size_t row, std::uint64_t& attempt,
                              const Suitable& suitable) noexcept {
  for (;;) {
    ++attempt;
    take(turn);
    const bool is_by_mass = turn.population().total > 0 && !(options_.uniform_mix > 0 && is_uniform(row, attempt));
    const bool is_counted = attempt % kRedraws > suitable.max_attempts(turn.window());
    if (is_counted ? draw_counted(turn, row, attempt, is_by_mass, suitable) : draw(turn, row, attempt, is_by_mass)) {
      return true;
    }
    if (is_counted && !suitable.are_all()) return false;
    if (is_counted) std::this_thread::yield();
    turn.refresh();
  }
}

bool PriorityDraw::draw(Priorities::Turn& turn, std::size_t row, std::uint64_t attempt, bool is_by_mass) noexcept {
  const std::uint64_t word = word_of_attempt(key_, call_, row, attempt);
  if (!is_by_mass) return draw_uniformly(turn, row, word);
  double target = fraction(word) * turn.population().total;
  Drawn drawn;
  turn.find({&target, 1}, {&drawn, 1});
  if (drawn.mass > 0) set(row, drawn.ticket, drawn.mass);
  return drawn.mass > 0;
}

// From what can be drawn now, if that is anything.
bool PriorityDraw::draw_counted(const Priorities::Turn& turn, std::size_t row, std::uint64_t attempt, bool is_by_mass,
                                const Suitable& suitable) noexcept {
  for (const Window& window : {turn.window(), uncleared(ring_, turn.window(), oldest_)}) {
    const auto mass = [&](Ticket ticket) {
      if (!suitable.has(ticket, window)) return 0.0;
      return is_by_mass ? static_cast<double>(turn.mass(ticket)) : 1.0;
    };
    const Ticket ticket = fastreplay::draw_counted(ring_, window, key_, {row + 1, call_, attempt, kCounted}, mass);
    if (ticket != window.end) {
      set(row, ticket, turn.mass(ticket));
      return true;
    }
    if (!suitable.are_all()) return false;
  }
  return false;
}

bool PriorityDraw::draw_uniformly(const Priorities::Turn& turn, std::size_t row, std::uint64_t word) noexcept {
  const Window& window = turn.window();
  std::uint64_t position = 0;
  if (window.reserved() == 0 || !draw_below(window.reserved(), word, position)) return false;
  const Ticket ticket = window.first + position;
  if (!ring_.is_published(ticket, window)) return false;
  set(row, ticket, turn.mass(ticket));
  return true;
}

void PriorityDraw::take(const Priorities::Turn& turn) noexcept {
  first_ = turn.window().first;
  first_slot_ = ring_.slot(first_);
  const Population& population = turn.population();
  const bool counts_all = population.total == 0 || options_.uniform_mix > 0;  // else only what has mass can be drawn
  const std::uint64_t count = counts_all ? turn.window().published() : population.count;
  count_ = static_cast<double>(std::max<std::uint64_t>(1, count));
  share_ = 1 / count_;
  by_chance_ = population.total == 0 ? 1 : options_.uniform_mix;
  by_mass_ = population.total == 0 ? 0 : (1 - options_.uniform_mix) * count_ / population.total;
}

void PriorityDraw::set(std::size_t row, Ticket ticket, float mass) noexcept {
  const double likely = times_as_likely(mass);
  tickets_[row] = ticket;
  weights_[row] = static_cast<float>(likely);
  probabilities_[row] = static_cast<float>(likely * share_);
}

}  // namespace fastreplay
