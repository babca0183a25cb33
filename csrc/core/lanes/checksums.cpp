// SPDX-License-Identifier: MIT
#include "lanes/checksums.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstring>
#include <span>

#include "storage/copy.hpp"

namespace fastreplay {

namespace {

// Each step is one to one in the number before and in what is added: two texts that differ in one word have different
// numbers, and others one in 2^64 of the same. (A product with an odd number, and a rotation, can be undone.)
class Mix {
 public:
  explicit Mix(std::uint64_t seed) noexcept : number_{seed} {}

  void add(std::uint64_t word) noexcept { number_ = (std::rotl(number_, 29) ^ word) * 0x9E37'79B9'7F4A'7C15U; }
  void add(std::span<const std::byte> bytes) noexcept {
    for (std::size_t at = 0; at < bytes.size(); at += sizeof(std::uint64_t)) {
      std::uint64_t word = 0;
      std::memcpy(&word, bytes.data() + at, std::min(sizeof word, bytes.size() - at));
      add(word);
    }
  }
  // Of what others may be writing.
  void add_copied(const std::byte* from, std::size_t num_bytes) noexcept {
    std::array<std::byte, kTogether> copied;
    for (std::size_t begin = 0; begin < num_bytes; begin += kTogether) {
      const std::size_t count = std::min(kTogether, num_bytes - begin);
      compiler_barrier();
      load_row(copied.data(), from + begin, count);
      compiler_barrier();
      add(std::span{copied}.first(count));
    }
  }
  [[nodiscard]] std::uint64_t number() const noexcept { return number_ ^ (number_ >> 32); }

 private:
  static constexpr std::size_t kTogether = 4096;  // a multiple of a word

  std::uint64_t number_;
};

}  // namespace

Checksums::Checksums(const Ring& ring, const Lanes* lanes, Memory& memory)
    : ring_{ring}, lanes_{lanes}, region_{memory.take(ring.capacity() * sizeof(std::uint64_t))} {}

Ticket Checksums::confirm(Ticket first, Ticket end) noexcept {
  for (Ticket ticket = first; ticket < end; ++ticket) at(ticket) = of(ticket);
  return std::clamp(ring_.oldest_whole(), first, end);
}

Ticket Checksums::oldest_intact(Ticket first, Ticket end) const noexcept {
  Ticket intact = end;
  while (intact > first && at(intact - 1) == of(intact - 1)) --intact;
  return intact;
}

std::uint64_t Checksums::of(Ticket ticket) const noexcept {
  Mix mix{ticket + 1};
  mix.add_copied(ring_.record(ticket), ring_.records().layout().used_bytes());
  // Wherever they lie: in records that are too old to be confirmed, too.
  at_older_frames(ring_.records(), ring_.slot(ticket),
                  [&mix](const std::byte* frame, std::size_t num_bytes) { mix.add_copied(frame, num_bytes); });
  if (lanes_ != nullptr) {
    const Lanes::Links& links = lanes_->links();
    const Lanes::Links::Place place = links.place(ticket);
    // What of a link changes once it is there is left out: how far away others are, and a cut.
    mix.add(std::uint64_t{links.lane(place.slot)} << 2 |
            std::uint64_t{links.before(place.slot) == Before::kFirst} << 1 |
            std::uint64_t{links.after(place) == After::kEnded});
  }
  return mix.number();
}

}  // namespace fastreplay
