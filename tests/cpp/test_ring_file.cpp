// SPDX-License-Identifier: MIT
// Rings in files, whose process is killed after any instruction: of an insert, of the taking up of what another process
// left. What is found is every transition that was published, whole, in order, of its lane and with its mass, and no
// other. Then checksums, of which one byte that is another shows; a ring that is closed under who uses it; and what
// regions of a file are.
//
// A child does the work one instruction at a time; the file as it is after each is what a kill would leave.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <csignal>
#include <cstdint>
#include <cstring>
#include <functional>
#include <iostream>
#include <memory>
#include <numeric>
#include <optional>
#include <span>
#include <system_error>
#include <utility>
#include <vector>

#include "check.hpp"
#include "lanes/checksums.hpp"
#include "lanes/lanes.hpp"
#include "priority/priorities.hpp"
#include "ring/insert.hpp"
#include "rows.hpp"
#include "storage/mapped_file.hpp"
#if defined(FASTREPLAY_STOP_POINTS)
#include "yields.hpp"
#endif

using fastreplay::Checksums;
using fastreplay::is_gap;
using fastreplay::Lanes;
using fastreplay::MappedFile;
using fastreplay::Priorities;
using fastreplay::Region;
using fastreplay::Ring;
using fastreplay::Ticket;

namespace {

constexpr std::size_t kLanes = 2;
constexpr std::size_t kMostRows = 64;

using Image = std::vector<std::byte>;

std::size_t num_images = 0;

int new_file() {
  const int descriptor = memfd_create("ring", MFD_CLOEXEC);
  CHECK(descriptor >= 0);
  return descriptor;
}

Image read_all(int descriptor) {
  struct stat found{};
  CHECK_EQ(fstat(descriptor, &found), 0);
  Image image(static_cast<std::size_t>(found.st_size));
  CHECK_EQ(pread(descriptor, image.data(), image.size(), 0), static_cast<ssize_t>(image.size()));
  return image;
}

// How many slots there are, and how many of them are kept for frames; without any, there are none.
struct Of {
  std::size_t capacity;
  std::size_t num_spare = 0;
};

constexpr std::size_t kNow = 3, kNext = 4, kStack = 2, kFrameBytes = 12;

fastreplay::RecordLayout layout(const Of& of) {
  std::vector<std::size_t> row_bytes{8, 5, 1};
  std::vector<fastreplay::FrameGroup> groups;
  if (of.num_spare > 0) {
    row_bytes.resize(kNext + 1, kStack * kFrameBytes);
    groups.push_back({.fields = {kNow, kNext}, .num_frames = kStack});
  }
  return fastreplay::RecordLayout{rows::fields_of(row_bytes), std::move(groups)};
}

// Frames go on along a lane for 5 steps; then others begin.
std::byte byte_of(std::uint64_t id, std::size_t field, std::size_t place) {
  if (field < kNow) return rows::byte_of(id, field, place);
  const std::uint64_t lane = id % kLanes, trajectory = id / kLanes / 5, step = id / kLanes % 5;
  const std::uint64_t number = step + field - kNow + 1 + place / kFrameBytes;  // of the first two the older is the same
  return rows::byte_of((trajectory * kLanes + lane) * 100 + std::max<std::uint64_t>(number, kStack), 9,
                       place % kFrameBytes);
}

// The rows of transitions id, id + 1, ...
class Batch {
 public:
  Batch(const fastreplay::RecordLayout& layout, std::uint64_t first_id, std::size_t num_rows) {
    for (std::size_t f = 0; f < layout.num_fields(); ++f) {
      const std::size_t row_bytes = layout.columns()[f].row_bytes;
      auto& bytes = bytes_.emplace_back(num_rows * row_bytes);
      for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = byte_of(first_id + i / row_bytes, f, i % row_bytes);
      rows_.push_back({.data = bytes.data(), .stride_bytes = row_bytes});
    }
  }

  [[nodiscard]] std::span<const fastreplay::Rows> rows() const { return rows_; }

 private:
  std::vector<std::vector<std::byte>> bytes_;
  std::vector<fastreplay::Rows> rows_;
};

// A ring with lanes and priorities in a file: transition i is of lane i % 2 and has the mass i + 1.
struct Stored {
  Stored(int descriptor, const Of& of, bool is_new)
      : file{std::make_shared<MappedFile>(descriptor, 0, is_new, /*fits=*/true)},
        ring{layout(of), of.capacity, of.num_spare, *file},
        lanes{ring, kLanes, {}, *file},
        priorities{ring, {.alpha = 1, .eps = 0, .floor = 0}, -1, false, false, *file},
        checksums{ring, &lanes, *file} {}

  void insert(const Batch& batch, std::uint64_t id, std::size_t num_rows) {
    std::array<std::int64_t, kMostRows> of_lanes;
    std::array<double, kMostRows> masses;
    for (std::size_t i = 0; i < num_rows; ++i) {
      of_lanes[i] = static_cast<std::int64_t>((id + i) % kLanes);
      masses[i] = static_cast<double>(id + i + 1);
    }
    std::array<fastreplay::Rows, 8> columns;
    const fastreplay::Frames* frames = lanes.frames();
    CHECK(fastreplay::insert_beside(
        ring, frames == nullptr ? batch.rows() : frames->stored_as_given(batch.rows(), columns), 0, num_rows, {},
        Lanes::NewRows{lanes, of_lanes.data(), batch.rows()}, Priorities::NewRows{priorities, masses.data()}));
  }
  void insert(std::uint64_t id, std::size_t num_rows) {
    for (std::size_t i = 0; i < num_rows; ++i) insert(Batch{ring.records().layout(), id + i, 1}, id + i, 1);
  }

  // As the bindings do.
  bool go_on() {
    if (!ring.is_sound()) return false;
    fastreplay::discard_unfinished(ring, &priorities, &lanes);
    priorities.go_on();
    return lanes.go_on();
  }

  // Whether it is that transition, frame by frame.
  [[nodiscard]] bool is(Ticket ticket, std::uint64_t id) const {
    const auto& records = ring.records();
    for (std::size_t f = 0; f < records.layout().num_fields(); ++f) {
      const auto [offset, row_bytes, num_frames] = records.layout().columns()[f];
      const std::byte* in_record = ring.record(ticket) + offset;
      for (std::size_t i = 0; i < row_bytes; ++i) {
        const auto* places = reinterpret_cast<const fastreplay::FramePlace*>(in_record);
        const std::byte* at = num_frames == 0
                                  ? in_record + i
                                  : records.frames().at(places[i / kFrameBytes], kFrameBytes) + i % kFrameBytes;
        if (*at != byte_of(id, f, i)) return false;
      }
    }
    return true;
  }

  // What there is; nothing where a record is none, or its lane, mass or link is not its own.
  std::optional<std::vector<std::uint64_t>> ids(std::uint64_t most) {
    const fastreplay::Window window = ring.window();
    std::vector<std::uint64_t> found;
    std::vector<std::optional<Ticket>> last(kLanes);
    std::vector<float> masses(window.reserved());
    priorities.read(window.first, masses);
    if (window.committed != window.end) return std::nullopt;
    for (Ticket ticket = window.first; ticket < window.end; ++ticket) {
      std::uint64_t id = 0;
      while (id < most && !is(ticket, id)) ++id;
      const std::size_t lane = lanes.links().lane(ring.slot(ticket));
      if (id == most || lane != id % kLanes) return std::nullopt;
      if (masses[ticket - window.first] != static_cast<float>(id + 1)) return std::nullopt;
      const fastreplay::Gap before = lanes.links().before(ring.slot(ticket));
      if (last[lane] ? before != ticket - *last[lane] : is_gap(before)) return std::nullopt;
      if (last[lane] && lanes.links().after(lanes.links().place(*last[lane])) != before) return std::nullopt;
      last[lane] = ticket;
      found.push_back(id);
    }
    return found;
  }

  std::shared_ptr<MappedFile> file;
  Ring ring;
  Lanes lanes;
  Priorities priorities;
  Checksums checksums;
};

// What is found in a file like this one.
std::optional<std::vector<std::uint64_t>> found_in(const Image& image, const Of& of, std::uint64_t most) {
  const int descriptor = new_file();
  CHECK_EQ(pwrite(descriptor, image.data(), image.size(), 0), static_cast<ssize_t>(image.size()));
  Stored stored{descriptor, of, false};
  CHECK_EQ(close(descriptor), 0);
  if (!stored.go_on()) return std::nullopt;
  std::optional<std::vector<std::uint64_t>> ids = stored.ids(most);
  // It goes on from there.
  const Ticket next = stored.ring.window().end;
  stored.insert(most, 3);
  CHECK_EQ(stored.ring.window().end, next + 3);
  CHECK(stored.is(next, most));
  if (next > 0) CHECK_EQ(stored.lanes.links().before(stored.ring.slot(next)), fastreplay::Before::kLost);
  return ids;
}

// The file as it is after each instruction of a call by another process, where it is another than after the one before.
// Nothing where processes may not be followed.
std::vector<Image> images_while(int descriptor, const std::function<void()>& call) {
  std::vector<Image> images{read_all(descriptor)};
  const pid_t child = fork();
  if (child == 0) {
    if (ptrace(PTRACE_TRACEME, 0, nullptr, nullptr) != 0) _exit(1);
    (void)raise(SIGSTOP);
    call();
    _exit(0);
  }
  int status = 0;
  CHECK_EQ(waitpid(child, &status, 0), child);
  if (WIFEXITED(status)) return {};
  const std::size_t num_bytes = images.front().size();
  const void* file = mmap(nullptr, num_bytes, PROT_READ, MAP_SHARED, descriptor, 0);
  CHECK(file != MAP_FAILED);
  while (ptrace(PTRACE_SINGLESTEP, child, nullptr, nullptr) == 0 && waitpid(child, &status, 0) == child &&
         WIFSTOPPED(status)) {
    if (std::memcmp(file, images.back().data(), num_bytes) == 0) continue;
    images.push_back(Image(num_bytes));
    std::memcpy(images.back().data(), file, num_bytes);
  }
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  num_images += images.size();
  CHECK_EQ(munmap(const_cast<void*>(file), num_bytes), 0);
  return images;
}

void a_writer_is_killed(const Of& of, std::uint64_t num_before, std::size_t num_rows) {
  const int descriptor = new_file();
  Stored stored{descriptor, of, true};
  stored.insert(0, num_before);
  const Batch batch{layout(of), num_before, num_rows};
  const std::vector<Image> images = images_while(descriptor, [&] { stored.insert(batch, num_before, num_rows); });
  std::uint64_t end = num_before;
  for (const Image& image : images) {
    const auto ids = found_in(image, of, num_before + num_rows);
    CHECK(ids && (!ids->empty() || end == 0));
    if (!ids) continue;
    const std::uint64_t last = ids->empty() ? 0 : ids->back() + 1;
    CHECK(last >= end && last <= num_before + num_rows);
    end = last;
    for (std::size_t i = 1; i < ids->size(); ++i) CHECK_EQ((*ids)[i], (*ids)[i - 1] + 1);
    // What was reserved, and no more, is gone of the oldest.
    CHECK(ids->size() + num_rows >= std::min<std::uint64_t>(of.capacity - of.num_spare, last));
  }
  if (!images.empty()) CHECK_EQ(end, num_before + num_rows);
  CHECK_EQ(close(descriptor), 0);
}

// Of writers that were killed, some between others that were not.
void a_file_with_gaps(Stored& stored, std::uint64_t num_before, std::uint64_t& next) {
  stored.insert(0, num_before);
  next = num_before;
  Ticket ticket = 0;
  for (const std::size_t num_unfinished : {2, 1, 3}) {
    for (std::size_t i = 0; i < num_unfinished; ++i) {
      CHECK(stored.ring.reserve(1, {}, ticket));
      const Batch half{stored.ring.records().layout(), 1'000'000, 1};
      stored.ring.write(half.rows().first(2), 0, stored.ring.slot(ticket), 1);
    }
    stored.insert(next, 2);
    next += 2;
  }
}

void who_takes_it_up_is_killed(const Of& of, std::uint64_t num_before) {
  const int descriptor = new_file();
  std::uint64_t next = 0;
  a_file_with_gaps(*std::make_unique<Stored>(descriptor, of, true), num_before, next);
  const auto expected = found_in(read_all(descriptor), of, next);
  CHECK(expected && expected->size() >= 6 && expected->back() == next - 1);
  Stored stored{descriptor, of, false};
  const std::vector<Image> images = images_while(descriptor, [&] { (void)stored.go_on(); });
  for (const Image& image : images) CHECK(found_in(image, of, next) == expected);
  CHECK_EQ(close(descriptor), 0);
}

void each_byte_counts() {
  const int descriptor = new_file();
  Stored stored{descriptor, {.capacity = 8}, true};
  stored.insert(0, 13);
  CHECK_EQ(stored.checksums.confirm(5, 13), 5U);
  CHECK_EQ(stored.checksums.oldest_intact(5, 13), 5U);
  CHECK_EQ(stored.checksums.oldest_intact(13, 21), 21U);  // of which the slots have what is older
  stored.insert(13, 3);                                   // over 5, 6 and 7
  CHECK_EQ(stored.checksums.oldest_intact(5, 13), 8U);
  for (Ticket ticket = 8; ticket < 13; ++ticket) {
    auto* record = const_cast<std::byte*>(stored.ring.record(ticket));
    for (std::size_t i = 0; i < stored.ring.records().layout().used_bytes(); ++i) {
      record[i] ^= std::byte{0x10};
      CHECK_EQ(stored.checksums.oldest_intact(8, 13), ticket + 1);
      record[i] ^= std::byte{0x10};
    }
  }
  CHECK_EQ(stored.checksums.oldest_intact(8, 13), 8U);
  CHECK_EQ(stored.checksums.confirm(8, 16), 8U);
  CHECK_EQ(stored.checksums.oldest_intact(8, 16), 8U);
  stored.lanes.cut(0);  // which is not taken for another link
  CHECK_EQ(stored.checksums.oldest_intact(8, 16), 8U);
  CHECK_EQ(close(descriptor), 0);
}

void each_byte_of_a_frame_counts() {
  const int descriptor = new_file();
  Stored stored{descriptor, {.capacity = 16, .num_spare = 6}, true};
  stored.insert(0, 23);
  CHECK_EQ(stored.checksums.confirm(13, 23), 13U);
  CHECK_EQ(stored.checksums.oldest_intact(13, 23), 13U);
  std::size_t num_frames = 0;
  for (Ticket ticket = 13; ticket < 23; ++ticket) {
    at_older_frames(stored.ring.records(), stored.ring.slot(ticket),
                    [&](const std::byte* frame, std::size_t num_bytes) {
                      ++num_frames;
                      for (std::size_t i = 0; i < num_bytes; ++i) {
                        const_cast<std::byte*>(frame)[i] ^= std::byte{0x10};
                        CHECK(stored.checksums.oldest_intact(13, 23) > ticket);
                        const_cast<std::byte*>(frame)[i] ^= std::byte{0x10};
                      }
                    });
  }
  CHECK(num_frames >= 18);
  CHECK_EQ(stored.checksums.oldest_intact(13, 23), 13U);
  stored.insert(23, 2);  // over the oldest that are kept for their frames
  CHECK(stored.checksums.oldest_intact(13, 23) <= 15);
  CHECK_EQ(close(descriptor), 0);
}

void headers_that_cannot_be(const Of& of) {
  const int descriptor = new_file();
  Stored stored{descriptor, of, true};
  stored.insert(0, 13);
  const Image sound = read_all(descriptor);
  CHECK(found_in(sound, of, 13));
  Image with_more = sound;
  reinterpret_cast<fastreplay::RingHeader*>(with_more.data())->head += of.capacity + 1;
  CHECK(!found_in(with_more, of, 13));
  check::Random random{4};
  for (int turn = 0; turn < 1000; ++turn) {
    Image image = sound;
    const std::size_t at = random.below(4) == 0 ? random.below(image.size()) : random.below(400);
    const std::uint64_t value = random.below(2) == 0 ? random.next() : random.below(30);
    std::memcpy(image.data() + std::min(at, image.size() - sizeof value), &value, sizeof value);
    (void)found_in(image, of, 13);  // is refused, or some of it is taken for something: nothing is touched beyond it
  }
  CHECK_EQ(close(descriptor), 0);
}

// Whoever is using a ring finds it empty and shut, and finishes what it began; then the file is whole, and nobody's.
void it_is_closed() {
  const Of of{.capacity = 8};
  const int descriptor = new_file();
  Stored stored{descriptor, of, true};
  Ring& ring = stored.ring;
  stored.insert(0, 13);
  Ticket unfinished = 0;
  CHECK(ring.reserve(1, {}, unfinished));
  const fastreplay::RingHeader closed = ring.closed_header();
  fastreplay::RingHeader before;
  for (const std::size_t num_inserted : {14, 15}) {
    stored.file->take_over(ring.header_memory(), std::as_bytes(std::span{&closed, 1}));
    stored.file->read(ring.header_memory(), std::as_writable_bytes(std::span{&before, 1}));
    CHECK_EQ(before.head, num_inserted);
    CHECK(ring.is_closed() && ring.oldest_whole() > before.head);
    CHECK(ring.window().reserved() == 0 && ring.window().published() == 0);
    Ticket none = 0;
    CHECK(!ring.reserve(1, {}, none));
    ring.clear();
    if (num_inserted == 15) break;
    CHECK(!ring.has_finished(before));
    const Batch batch{layout(of), 13, 1};
    const std::int64_t lane = 13 % kLanes;
    const double mass = 14;
    {
      const Ring::Claim claim{ring, unfinished, 1};
      ring.write(batch.rows(), 0, claim.slot(), 1);
      Lanes::NewRows{stored.lanes, &lane, batch.rows()}.begin(unfinished, 0, 1);
      Priorities::NewRows{stored.priorities, &mass}.begin(unfinished, 0, 1);
    }
    CHECK(ring.has_finished(before));
    stored.file->give_back(ring.header_memory());
    CHECK(!ring.is_closed());
    stored.insert(14, 1);
  }
  stored.file->leave();
  Ticket none = 0;
  CHECK(ring.is_closed() && ring.window().reserved() == 0 && !ring.reserve(1, {}, none));
  std::memset(const_cast<std::byte*>(ring.record(14)), 0xFF, ring.records().layout().stride());
  const auto found = found_in(read_all(descriptor), of, 15);
  CHECK(found && found->size() == 8 && found->front() == 7);
  CHECK_EQ(close(descriptor), 0);
}

// The limit of this process stands for a full disk.
void no_room_is_said(MappedFile& file) {
  rlimit before{};
  CHECK_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  (void)std::signal(SIGXFSZ, SIG_IGN);
  const rlimit lower{.rlim_cur = file.end() + Region::kPageBytes, .rlim_max = before.rlim_max};
  CHECK_EQ(setrlimit(RLIMIT_FSIZE, &lower), 0);
  const std::size_t end = file.end();
  CHECK(check::throws<std::system_error>([&] { (void)file.take(2 * Region::kPageBytes); }));
  CHECK_EQ(file.end(), end);
  CHECK_EQ(setrlimit(RLIMIT_FSIZE, &before), 0);
}

void regions_are_the_file() {
  const int descriptor = new_file();
  for (const bool is_new : {true, false}) {
    const auto file = std::make_shared<MappedFile>(descriptor, Region::kPageBytes, is_new, true);
    const Region first = file->take(100);
    const Region second = file->take(2 * Region::kHugePageBytes + 5);
    const Region third = file->take(1, Region::kPageBytes + 1);
    CHECK_EQ(reinterpret_cast<std::uintptr_t>(second.data()) % Region::kHugePageBytes, 0U);
    for (const Region* region : {&first, &second, &third}) {
      std::byte* bytes = region->data();
      CHECK(bytes[0] == (is_new ? std::byte{0} : std::byte{7}) && bytes[region->num_bytes() - 1] == bytes[0]);
      bytes[0] = bytes[region->num_bytes() - 1] = std::byte{7};
    }
    CHECK(third.sparse()[Region::kPageBytes] == (is_new ? std::byte{0} : std::byte{8}));
    third.sparse()[Region::kPageBytes] = std::byte{8};
    third.drop(third.sparse(), 2 * Region::kPageBytes);  // which is not ours to give back
    CHECK(third.is_lent() && third.sparse()[Region::kPageBytes] == std::byte{8});
    CHECK_EQ(file->end(), 3 * Region::kHugePageBytes + 4 * Region::kPageBytes);
    CHECK_EQ(file->end(), read_all(descriptor).size());
    if (!is_new) CHECK(check::throws<std::invalid_argument>([&] { (void)file->take(1); }));
    if (is_new) CHECK(check::throws<std::bad_alloc>([&] { (void)file->take(~std::size_t{0} / 2); }));
    if (is_new) CHECK(check::throws<std::bad_alloc>([&] { (void)file->take(1, ~std::size_t{0} / 2); }));
    if (is_new) no_room_is_said(*file);
    if (is_new) continue;
    file->leave();  // as in a child
    CHECK(first.data()[0] == std::byte{0} && second.data()[1] == std::byte{0});
    first.data()[0] = std::byte{9};
    CHECK(read_all(descriptor)[Region::kPageBytes] == std::byte{7});
  }
  CHECK_EQ(close(descriptor), 0);
}

}  // namespace

int main() {
#if defined(FASTREPLAY_STOP_POINTS)
  yields::enabled.store(false, std::memory_order_relaxed);  // relaxed: there is one thread
#endif
  if (!MappedFile::is_supported()) return check::result();
  regions_are_the_file();
  it_is_closed();
  each_byte_counts();
  each_byte_of_a_frame_counts();
  headers_that_cannot_be({.capacity = 8});
  headers_that_cannot_be({.capacity = 14, .num_spare = 6});
  for (const std::uint64_t num_before : {0, 5, 8, 21}) {
    a_writer_is_killed({.capacity = 8}, num_before, 1);
    a_writer_is_killed({.capacity = 32}, num_before, 3);
  }
  for (const std::uint64_t num_before : {0, 9, 31}) a_writer_is_killed({.capacity = 36, .num_spare = 8}, num_before, 3);
  for (const std::uint64_t num_before : {3, 16, 37}) who_takes_it_up_is_killed({.capacity = 16}, num_before);
  for (const std::uint64_t num_before : {3, 16, 37}) {
    who_takes_it_up_is_killed({.capacity = 24, .num_spare = 8}, num_before);
  }
  std::cout << num_images << " files as kills leave them\n";
  return check::result();
}
