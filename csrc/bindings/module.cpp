// SPDX-License-Identifier: MIT
// The module fastreplay._core: construction, sampling, prefetching, reading and statistics for Python. The per-step
// paths are Cython's: fastreplay/buffer/insert.pyx, fastreplay/adapters/native_step_table.pyx.
#include "module.hpp"

#include "bounds.hpp"
#include "lanes/frames.hpp"

PYBIND11_MODULE(_core, m, pybind11::mod_gil_not_used()) {
  m.doc() = "Native core of fastreplay: the ring, the sampler, minibatch blocks.";
  m.attr("MAX_FIELDS") = fastreplay::kMaxFields;
  m.attr("MAX_FRAMES") = fastreplay::Frames::kMostFrames;
  fastreplay::bind_records(m);
  fastreplay::bind_ring_file(m);
  fastreplay::bind_blocks(m);
  fastreplay::bind_ring(m);
  fastreplay::bind_fields(m);
  fastreplay::bind_priorities(m);
  fastreplay::bind_lanes(m);
  fastreplay::bind_sent_frames(m);
  fastreplay::bind_sampling(m);
  fastreplay::bind_index_set(m);
  fastreplay::bind_take_rows(m);
  fastreplay::bind_prefetcher(m);
  fastreplay::bind_turn(m);
  fastreplay::bind_crc32(m);
  fastreplay::refuse_bare_objects(m);
}
