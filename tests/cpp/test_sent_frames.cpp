// SPDX-License-Identifier: MIT
// Records with frames in common in what stands for a device's memory, sent as fastreplay/gpu/mirror.py sends them:
// minibatches made there by the kernels beside the CPU's, bit for bit; and places that can be read whatever was there.
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <vector>

#include "batch/sample.hpp"
#include "check.hpp"
#include "following_there.hpp"
#include "frame_rows.hpp"
#include "lanes/sent_frames.hpp"
#include "pieces_there.hpp"

using fastreplay::Block;
using fastreplay::Following;
using fastreplay::FramePlace;
using fastreplay::Part;
using fastreplay::Philox;
using fastreplay::RecordLayout;
using fastreplay::Ring;
using fastreplay::Sampler;
using fastreplay::SentFrames;
using fastreplay::Source;
using fastreplay::Ticket;
using fastreplay::Ways;
using fastreplay::WindowRule;
using frame_rows::Shape;
using frame_rows::Streams;

namespace {

constexpr Philox::Key kKey{5, 6};

class Memory {
 public:
  explicit Memory(std::size_t num_bytes) : lines_(num_bytes / sizeof(Line) + 1) {
    std::memset(static_cast<void*>(lines_.data()), 0xEE, num_bytes);
  }
  [[nodiscard]] std::byte* data() { return lines_[0].bytes; }

 private:
  struct alignas(64) Line {
    std::byte bytes[64];
  };
  std::vector<Line> lines_;
};

// A ring's records there, and what lies beside them.
class There {
 public:
  There(const Ring& ring, std::size_t chunk_bytes)
      : sent{ring, chunk_bytes},
        records_{ring.capacity() * ring.records().layout().stride()},
        chunks_(sent.num_groups()) {}

  [[nodiscard]] std::byte* records() { return records_.data(); }
  [[nodiscard]] std::size_t num_rooms(std::size_t group) const {
    return sent.num_chunks(group) * sent.rooms_per_chunk(group);
  }

  // Sends up to `count` tickets. Returns how many.
  std::size_t send(Ticket first, std::size_t count, std::size_t frames_bytes) {
    const std::size_t stride = sent.ring().records().layout().stride();
    Memory stage{count * stride};
    Memory frames{frames_bytes};
    SentFrames::Found found;
    do {
      if (found.lacking) grow(*found.lacking);
      found = sent.read(first, {stage.data(), count * stride}, {frames.data(), frames_bytes});
    } while (found.num_records == 0 || (found.lacking && first % 2 == 0));
    CHECK(found.num_records <= count);
    for (const auto& [group, room, num_rooms, offset] : found.copies) {
      const std::size_t per_chunk = sent.rooms_per_chunk(group);
      const std::size_t num_bytes = sent.frame_bytes(group);
      CHECK(room % per_chunk + num_rooms <= per_chunk && offset + num_rooms * num_bytes <= frames_bytes);
      std::byte* chunk = chunks_[group].at(room / per_chunk)->data();
      std::memcpy(chunk + room % per_chunk * num_bytes, frames.data() + offset, num_rooms * num_bytes);
    }
    std::memcpy(records() + sent.ring().slot(first) * stride, stage.data(), found.num_records * stride);
    return found.num_records;
  }

  // Whether what a record in a stage says is that of frames which can be read, each of its group.
  [[nodiscard]] bool can_be_read(std::byte* record) {
    const RecordLayout& layout = sent.ring().records().layout();
    for (std::size_t group = 0; group < sent.num_groups(); ++group) {
      const RecordLayout::Frames& frames = layout.frames()[group];
      for (const std::size_t field : frames.group.fields) {
        const auto* places = reinterpret_cast<const FramePlace*>(record + layout.columns()[field].offset);
        for (std::size_t i = 0; i < frames.group.num_frames; ++i) {
          if (!can_be_read(group, places[i], layout.columns()[frames.column].offset)) return false;
        }
      }
    }
    return true;
  }

  SentFrames sent;

 private:
  void grow(std::size_t group) {
    chunks_[group].push_back(std::make_unique<Memory>(sent.rooms_per_chunk(group) * sent.frame_bytes(group)));
    const auto address = [](std::byte* of) { return reinterpret_cast<std::uintptr_t>(of); };
    sent.add_chunk(group, address(chunks_[group].back()->data()) - address(records()));
  }
  [[nodiscard]] bool can_be_read(std::size_t group, FramePlace place, std::size_t newest) {
    const std::size_t stride = sent.ring().records().layout().stride();
    if (place < sent.ring().capacity() * stride) return place % stride == newest;
    const std::size_t chunk_bytes = sent.rooms_per_chunk(group) * sent.frame_bytes(group);
    return std::ranges::any_of(chunks_[group], [&](const auto& chunk) {
      const auto offset =
          reinterpret_cast<std::uintptr_t>(records()) + place - reinterpret_cast<std::uintptr_t>(chunk->data());
      return offset < chunk_bytes && offset % sent.frame_bytes(group) == 0;
    });
  }

  Memory records_;
  std::vector<std::vector<std::unique_ptr<Memory>>> chunks_;
};

// A ring here and there.
class Both {
 public:
  Both(const Shape& shape, std::size_t capacity, std::size_t num_spare, std::size_t num_lanes, std::size_t chunk_bytes)
      : streams{shape, capacity, num_spare, num_lanes},
        there{streams.ring, chunk_bytes},
        links{streams.ring, streams.lanes},
        random{capacity + num_lanes} {}

  void insert(std::size_t most, std::uint64_t one_in) {
    std::vector<std::int64_t> numbers(1 + random.below(most));
    for (std::int64_t& number : numbers) number = static_cast<std::int64_t>(random.below(streams.lanes.num_lanes()));
    streams.insert(numbers, one_in);
  }

  // What came since the last time, and before it what that looks up.
  void flush() {
    const fastreplay::Window now = streams.ring.window();
    window = links.flush(1 + random.below(streams.ring.capacity()), random);
    if (now.reserved() == 0) return;
    const Ticket begin = std::max(end_, now.first - std::min<Ticket>(now.first, streams.ring.num_spare()));
    for (Ticket ticket = begin; ticket < now.end;) {
      const std::size_t slot = streams.ring.slot(ticket);
      const std::size_t count = std::min(now.end - ticket, streams.ring.capacity() - slot);
      const std::size_t frames_bytes = there.sent.most_bytes() * (1 + random.below(3));
      ticket += there.send(ticket, 1 + random.below(count), frames_bytes);
      if (random.below(9) == 0) ticket = std::max(begin, ticket - random.below(3));  // a call that is interrupted
    }
    end_ = now.end;
  }

  void compare(std::size_t batch_size, std::uint64_t call) {
    const RecordLayout& layout = streams.ring.records().layout();
    compare(transition_parts(layout), nullptr, batch_size, call);
    WindowRule rule;
    std::vector<Part> parts;
    for (std::size_t field = Shape::kFirst; field < layout.num_fields(); ++field) {
      parts.push_back({.source = field % 2 == 0 ? Source::kStart : Source::kEnd,
                       .row_bytes = layout.columns()[field].row_bytes,
                       .field = field});
    }
    rule.most_before = 1;
    rule.most_after = 2;
    rule.is_redrawn = call % 2 == 0;
    rule.is_time_major = call % 3 == 0;
    const fastreplay::Steps steps{.first = -1, .count = 4, .stride = 1};
    WindowRule::Taken taken{steps, call % 5 == 0, call % 7 == 0, {}, {}};
    for (std::size_t field = 0; field < layout.num_fields(); ++field) {
      taken.fields.push_back(field);
      taken.parts.push_back(parts.size());
      parts.push_back({.source = Source::kMade, .row_bytes = taken.num_given() * layout.columns()[field].row_bytes});
    }
    rule.taken.push_back(taken);
    parts.push_back({.source = Source::kTicket, .row_bytes = 8});
    rule.ways_part = parts.size();
    parts.push_back({.source = Source::kMade, .row_bytes = Ways::row_bytes(4)});
    compare(parts, &rule, batch_size, call);
  }

  Streams streams;
  There there;
  following_there::Links links;
  check::Random random;
  fastreplay_cuda_window window{};

 private:
  // Draws on both sides, of transitions by themselves or by a rule, and compares all but the ways.
  void compare(const std::vector<Part>& parts, const WindowRule* rule, std::size_t batch_size, std::uint64_t call) {
    const Block expected{parts, batch_size};
    const Block found{parts, batch_size};
    const RecordLayout& layout = streams.ring.records().layout();
    const std::size_t piece_bytes = 1 + random.below(40);
    std::vector<fastreplay_cuda_piece> pieces;
    for (std::size_t field = 0; rule == nullptr && field < layout.num_fields(); ++field) {
      const auto of = pieces_there::pieces_of(layout, field, found.layout().offsets()[field], piece_bytes);
      pieces.insert(pieces.end(), of.begin(), of.end());
    }
    fastreplay_cuda_generator generator{};
    std::ranges::copy(kKey, generator.key);
    generator.calls = call;
    fastreplay_cuda_window set{};
    fastreplay_cuda_sampling sampling{};
    sampling.now = &window;
    sampling.window = &set;
    sampling.generator = &generator;
    sampling.records = there.records();
    sampling.stride = layout.stride();
    sampling.capacity = streams.ring.capacity();
    sampling.block = found.data();
    sampling.tickets_offset = found.layout().tickets_offset();
    sampling.batch_size = batch_size;
    sampling.pieces = pieces.data();
    sampling.num_pieces = pieces.size();
    std::vector<fastreplay_cuda_made> made;
    fastreplay_cuda_following following{};
    if (rule != nullptr) {
      CHECK(fits(*rule, layout, found.layout()));
      made = following_there::made_of(streams.ring, *rule, found, piece_bytes);
      following = following_there::following_of(streams.ring, *rule, found, links.data(), made);
      sampling.following = &following;
      following_there::sample(sampling, random);
    } else {
      following_there::sample_alone(sampling, random);
    }
    Sampler sampler{kKey, call};
    const Following with{streams.lanes, rule == nullptr ? WindowRule{} : *rule};
    const bool is_drawn = sampler.sample(streams.ring, expected, 0, rule == nullptr ? nullptr : &with) > 0;
    CHECK_EQ(is_drawn, window.size > 0 && generator.num_incomplete == 0);
    if (!is_drawn) return;
    for (std::size_t part = 0; part < parts.size() - (rule == nullptr ? 0 : 1); ++part) {
      CHECK(std::memcmp(found.part(part), expected.part(part), batch_size * parts[part].row_bytes) == 0);
    }
  }

  Ticket end_ = 0;
};

std::vector<Shape> shapes() {
  return {
      {{{.num_fields = 2, .num_frames = 1, .frame_bytes = 12}}},
      {{{.num_fields = 1, .num_frames = 4, .frame_bytes = 7}}},
      {{{.num_fields = 2, .num_frames = 3, .frame_bytes = 16}}},
      {{{.num_fields = 2, .num_frames = 4, .frame_bytes = 40}, {.num_fields = 2, .num_frames = 1, .frame_bytes = 5}}},
      {{{.num_fields = 2, .num_frames = 2, .frame_bytes = 3000}}},  // in pages of their own
  };
}

// Several laps, breaks of stacks, lanes that are slow, clears; flushed now and then.
void test_the_same_minibatches_as_on_the_cpu() {
  for (const Shape& shape : shapes()) {
    const std::size_t num_frames = shape.groups[0].num_frames;
    for (const std::size_t num_lanes : {1, 3}) {
      for (const std::size_t chunk_bytes : {std::size_t{1}, 5 * shape.groups[0].frame_bytes, std::size_t{1} << 16}) {
        Both both{shape, 30, 2 * num_frames * num_lanes, num_lanes, chunk_bytes};
        for (std::uint64_t round = 0; round < 30; ++round) {
          both.insert(round % 7 == 0 ? 90 : 12, 1 + round % 6);
          if (round % 11 == 5) both.streams.ring.clear();
          if (round % 3 == 1) continue;            // several before the next flush
          if (round % 11 == 5) both.insert(3, 0);  // which look up what was before
          both.flush();
          both.compare(1 + 6 * (round % 3), round);
        }
      }
    }
  }
}

// As many rooms as frames have been there at once, and what is left of a chunk.
void test_rooms_are_taken_as_needed() {
  const Shape shape{{{.num_fields = 2, .num_frames = 2, .frame_bytes = 24}}};
  Both both{shape, 40, 4, 1, 24 * 4};
  std::size_t most = 0;
  for (int round = 0; round < 200; ++round) {
    both.insert(6, round < 100 ? 4 : 1);
    both.flush();
    if (round % 20 > 15) both.compare(9, static_cast<std::uint64_t>(round));
    most = std::max(most, both.streams.lanes.frames()->num_bytes() / 24);
  }
  CHECK(both.there.num_rooms(0) >= most);
  CHECK(both.there.num_rooms(0) <= both.streams.ring.capacity() * 3 + 4);  // all that can be beside records
  Both plain{shape, 40, 4, 1, 24 * 4};
  for (int round = 0; round < 200; ++round) {
    plain.insert(6, 0);
    plain.flush();
  }
  CHECK(plain.there.num_rooms(0) <= 8);  // of the first transition alone
}

// What a writer or a stranger left in the place of places is never followed.
void test_whatever_is_there_can_be_read() {
  for (const Shape& shape : shapes()) {
    Both both{shape, 30, 20, 2, 5 * shape.groups[0].frame_bytes};
    both.insert(60, 2);
    both.flush();
    Ring& ring = both.streams.ring;
    const RecordLayout& layout = ring.records().layout();
    const std::size_t stride = layout.stride();
    const fastreplay::Window window = ring.window();
    for (int round = 0; round < 50; ++round) {
      for (std::size_t slot = 0; slot < ring.capacity(); ++slot) {
        for (std::size_t field = Shape::kFirst; field < layout.num_fields(); ++field) {
          auto* places = reinterpret_cast<FramePlace*>(ring.records().at(slot) + layout.columns()[field].offset);
          const FramePlace last = ring.records().place(ring.records().beside(ring.capacity()));
          for (std::size_t i = 0; i < layout.columns()[field].num_frames; ++i) {
            const std::array<FramePlace, 5> choices{
                both.random.next(), both.random.below(last + 100),
                last - both.random.below(shape.groups[0].frame_bytes), places[both.random.below(i + 1)],
                ring.records().place(ring.records().beside(slot)) + both.random.below(layout.extra_bytes())};
            places[i] = choices[both.random.below(choices.size())];
          }
        }
      }
      for (Ticket ticket = window.first; ticket < window.end; ++ticket) {
        const std::size_t sent = both.there.send(ticket, 1, both.there.sent.most_bytes());
        CHECK_EQ(sent, 1U);
        CHECK(both.there.can_be_read(both.there.records() + ring.slot(ticket) * stride));
      }
    }
  }
}

}  // namespace

int main() {
  test_the_same_minibatches_as_on_the_cpu();
  test_rooms_are_taken_as_needed();
  test_whatever_is_there_can_be_read();
  return check::result();
}
