// SPDX-License-Identifier: MIT
#include "batch/sample.hpp"

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <utility>

#include "batch/gather.hpp"
#include "batch/helpers.hpp"

namespace fastreplay {

namespace {

// Rows copied by one thread between two checks of head.
constexpr std::size_t kMaxChunkRows = Windows::kMostRows;

// How the rows of a block are shared among threads: by parts that are worth one's waking.
struct Shares {
  explicit Shares(const Block& block) noexcept
      : part_rows{std::clamp<std::size_t>(
            kPartBytes * block.batch_size() / std::max<std::size_t>(block.layout().num_bytes(), 1), 1, kMaxChunkRows)},
        threads{static_cast<unsigned>(std::min<std::size_t>(num_threads(), block.layout().num_bytes() / kPartBytes))} {}

  [[nodiscard]] std::size_t chunk_rows() const noexcept {
    return threads > 1 ? threads * kMaxChunkRows : kMaxChunkRows;
  }

  std::size_t part_rows;
  unsigned threads;  // 0 and 1: the caller's
};

// Transitions by themselves.
template <class Draw>
struct Alone {
  const Ring& ring;
  const Draw& draw;
  const Block& block;
  const ShiftDraw& shifts;

  // Copies rows [first_row, first_row + num_rows) of the block, which were drawn. Returns the least of their ranks.
  Ticket copy(std::size_t first_row, std::size_t num_rows) const noexcept {
    Ticket smallest = ~Ticket{0};
    const Ticket* next = block.tickets().data() + first_row;
    const auto next_slot = [&] {
      const Ticket ticket = *next++;
      smallest = std::min(smallest, ticket);
      return draw.slot(ticket);
    };
    gather(ring.records(), block.layout().copied(), block, first_row, num_rows, next_slot, shifts);
    return smallest + 1;
  }
  // As of Windows.
  [[nodiscard]] Ticket rank(std::size_t row) const noexcept { return block.tickets()[row] + 1; }
  [[nodiscard]] static bool suits(Ticket /*ticket*/, const Window& /*window*/) noexcept { return true; }
  [[nodiscard]] static bool suits_all() noexcept { return true; }
  [[nodiscard]] static std::size_t num_steps() noexcept { return 1; }
  [[nodiscard]] static std::pair<std::size_t, std::size_t> reach() noexcept { return {0, 0}; }
};

// The same by as many threads as it is worth. Each has a fence of its own between its copies and its word to this one
// that they are made, as the check of head afterwards asks for (ring/protocol.hpp, R2).
template <class Follow>
Ticket copy_chunk(const Follow& follow, std::size_t first_row, std::size_t num_rows, const Shares& shares) noexcept {
  if (shares.threads <= 1) return follow.copy(first_row, num_rows);
  const std::size_t part_rows = shares.part_rows;
  do_parts((num_rows + part_rows - 1) / part_rows, shares.threads, [&](std::size_t part) noexcept {
    const std::size_t begin = part * part_rows;
    follow.copy(first_row + begin, std::min(part_rows, num_rows - begin));
    // acquire: what is overwritten is so after its slot was taken; partner: the writer's fence after it took the slot.
    std::atomic_thread_fence(std::memory_order_acquire);
  });
  Ticket least = ~Ticket{0};
  for (std::size_t row = first_row; row < first_row + num_rows; ++row) least = std::min(least, follow.rank(row));
  return least;
}

// The same of records that may lie on a disk: all that are drawn are asked for before the first is copied, and what
// surrounds them as far as one lane goes.
template <class Follow>
Ticket copy_asked(const Ring& ring, const Follow& follow, const Block& block, std::size_t first_row,
                  std::size_t num_rows, const Shares& shares) noexcept {
  Paging::Copy copy{ring.records().paging()};
  if (copy.asks()) {
    const auto [before, after] = follow.reach();
    for (const Ticket ticket : block.tickets().subspan(first_row, num_rows)) {
      const std::size_t slot = ring.slot(ticket);
      const std::size_t first = slot - std::min<std::size_t>(slot, before);
      const std::size_t end = std::min(slot + after + 1, ring.capacity());
      copy.ask(ring.records().at(first), (end - first) * ring.records().layout().stride());
    }
    // Which frames a record is made of lies in it.
    for (const Ticket ticket : block.tickets().subspan(first_row, num_rows)) {
      at_older_frames(ring.records(), ring.slot(ticket),
                      [&copy](const std::byte* frame, std::size_t num_bytes) { copy.ask(frame, num_bytes); });
    }
  }
  return copy_chunk(follow, first_row, num_rows, shares);
}

// Replaces the rows of the chunk that were overwritten while they were copied, or that do not suit, by fresh draws from
// everything (taking a neighbour instead would bias). Counts them. Returns false where nothing suits, or it is given
// up.
template <class Draw, class Follow>
bool redraw(const Ring& ring, Draw& draw, const Follow& follow, std::size_t first_row, std::size_t num_rows,
            Ticket oldest_whole, std::size_t& num_redrawn, GivingUp* giving_up) noexcept {
  const Suitable suitable{follow};
  for (std::size_t row = first_row; row < first_row + num_rows; ++row) {
    if (follow.rank(row) > oldest_whole) continue;
    ++num_redrawn;
    std::uint64_t attempt = kRedraws;
    do {
      const std::uint64_t before = attempt;
      if (!draw.again(row, attempt, suitable)) return false;
      if (giving_up != nullptr && giving_up->is_due((attempt - before) * follow.num_steps())) return false;
    } while (follow.copy(row, 1) <= ring.oldest_whole());
  }
  return true;
}

// Fills the block's first rows with what is drawn, and counts those that had to be drawn again. What was begun is
// ended: rows that are overwritten meanwhile are drawn again, after a clear() from what it took out; it waits for a
// writer only where every row of the ring is being written. But it returns false where nothing suits.
template <class Draw, class Follow>
bool sample(const Ring& ring, Draw& draw, const Follow& follow, const Block& block, std::size_t batch_size,
            std::size_t& num_redraws, GivingUp* giving_up = nullptr) noexcept {
  const Shares shares{block};
  std::size_t chunk_rows = shares.chunk_rows();
  for (std::size_t row = 0; row < batch_size;) {
    const std::size_t num_rows = std::min(chunk_rows, batch_size - row);
    draw.fill(row, num_rows);
    const Ticket least = copy_asked(ring, follow, block, row, num_rows, shares);
    const Ticket oldest_whole = ring.oldest_whole();
    if (least <= oldest_whole) {
      std::size_t redrawn = 0;
      if (!redraw(ring, draw, follow, row, num_rows, oldest_whole, redrawn, giving_up)) return false;
      num_redraws += redrawn;
      // Writers lap us within a chunk: check more often.
      if (2 * redrawn > num_rows) chunk_rows = std::max<std::size_t>(1, chunk_rows / 2);
    }
    row += num_rows;
  }
  return true;
}

// With what surrounds each row, if anything does.
template <class Draw>
bool sample(Ring& ring, Draw& draw, const Following* following, const Block& block, std::size_t batch_size,
            std::size_t& num_redraws, const ShiftDraw& shifts) noexcept {
  if (following == nullptr) {
    return sample(ring, draw, Alone<Draw>{ring, draw, block, shifts}, block, batch_size, num_redraws);
  }
  const Windows windows{ring, following->lanes, following->rule, block, batch_size, shifts};
  return sample(ring, draw, windows, block, batch_size, num_redraws, following->giving_up);
}

}  // namespace

void Sampler::count_on_from(const Sampler& before) noexcept {
  count_on_from(before.num_sampled(), before.num_redraws(), before.num_without_mass());
  if (epochs_ && before.epochs_) epochs_->count_on_from(*before.epochs_);
}

void Sampler::count_on_from(std::uint64_t num_sampled, std::uint64_t num_redraws,
                            std::uint64_t num_without_mass) noexcept {
  // relaxed: statistics, and nobody else has this yet.
  num_sampled_.store(num_sampled, std::memory_order_relaxed);
  num_redraws_.store(num_redraws, std::memory_order_relaxed);
  num_without_mass_.store(num_without_mass, std::memory_order_relaxed);
}

void Sampler::take_rows(Ring& ring, const Block& block, Call& call) noexcept {
  call.num_rows = epochs_ ? epochs_->take(ring, block.tickets(), call.epoch) : block.batch_size();
  while (block.layout().is_share() && call.num_rows > 0 && call.num_rows < block.batch_size()) {
    EpochState of_next;
    const std::size_t more = epochs_->take(ring, block.tickets().subspan(call.num_rows), of_next);
    call.num_rows = more > 0 ? call.num_rows + more : 0;  // all was cleared meanwhile, and what had its turn with it
  }
  // relaxed: only that no two calls get the same number.
  if (call.num_rows > 0) call.number = calls_.fetch_add(1, std::memory_order_relaxed);
}

std::size_t Sampler::sample(Ring& ring, const Block& block, double beta, const Following* following) noexcept {
  const Window window = window_of_published(ring);
  if (window.reserved() == 0) return 0;
  Call call{.number = 0, .beta = beta};
  take_rows(ring, block, call);  // and a number only where there are some
  return call.num_rows > 0 && fill(ring, block, call, window, following) ? call.num_rows : 0;
}

bool Sampler::sample(Ring& ring, const Block& block, const Call& call, const Following* following) noexcept {
  if (call.num_rows == 0) return false;
  const Window window = window_of_published(ring);
  if (window.reserved() == 0 && !epochs_) return false;
  return fill(ring, block, call, window, following);
}

bool Sampler::fill(Ring& ring, const Block& block, const Call& call, const Window& window,
                   const Following* following) noexcept {
  const ShiftDraw shifts{.key = key_, .call = call.number};
  std::size_t num_redraws = 0;
  bool is_filled = false;
  if (epochs_) {
    EpochDraw draw{ring, *epochs_, key_, call.number, block.tickets()};
    is_filled = fastreplay::sample(ring, draw, following, block, call.num_rows, num_redraws, shifts);
  } else if (trajectories_ != nullptr) {
    TrajectoryDraw draw{ring, *trajectories_, key_, call.number, window, block.tickets()};
    is_filled = fastreplay::sample(ring, draw, following, block, call.num_rows, num_redraws, shifts);
  } else if (priorities_ == nullptr) {
    UniformDraw draw{ring, key_, call.number, recency_, window, block.tickets()};
    is_filled = fastreplay::sample(ring, draw, following, block, call.num_rows, num_redraws, shifts);
  } else {
    PriorityDraw draw{ring, *priorities_, options_, key_, call.number, call.beta, window, block};
    // relaxed: a statistic.
    if (draw.begin()) num_without_mass_.fetch_add(1, std::memory_order_relaxed);
    is_filled = fastreplay::sample(ring, draw, following, block, call.num_rows, num_redraws, shifts);
    draw.weigh();
  }
  // relaxed: statistics.
  if (is_filled) num_sampled_.fetch_add(call.num_rows, std::memory_order_relaxed);
  // relaxed: as above.
  if (num_redraws > 0) num_redraws_.fetch_add(num_redraws, std::memory_order_relaxed);
  return is_filled;
}

std::uint64_t Sampler::calls() const noexcept {
  // relaxed: a count that orders nothing.
  return calls_.load(std::memory_order_relaxed);
}

std::uint64_t Sampler::num_sampled() const noexcept {
  // relaxed: a statistic.
  return num_sampled_.load(std::memory_order_relaxed);
}

std::uint64_t Sampler::num_redraws() const noexcept {
  // relaxed: a statistic.
  return num_redraws_.load(std::memory_order_relaxed);
}

std::uint64_t Sampler::num_without_mass() const noexcept {
  // relaxed: a statistic.
  return num_without_mass_.load(std::memory_order_relaxed);
}

}  // namespace fastreplay
