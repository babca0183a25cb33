// SPDX-License-Identifier: MIT
// Times draws by priority without what they are for: no window, no sums made anew, no rows, no weights, no Python.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <chrono>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "batch/random.hpp"
#include "priority/priorities.hpp"

namespace py = pybind11;
namespace fr = fastreplay;

namespace {

using Tickets = py::array_t<std::int64_t>;

// Draws `rounds` times `batch_size` tickets, each from a share of the masses as sample() does: the tickets, and the
// seconds that their searches took.
std::pair<Tickets, double> draw(fr::Priorities& priorities, std::size_t batch_size, std::size_t rounds,
                                std::uint64_t seed) {
  Tickets tickets(static_cast<py::ssize_t>(rounds * batch_size));
  std::vector<double> targets(batch_size);
  std::vector<fr::Drawn> drawn(batch_size);
  std::chrono::steady_clock::duration spent{};
  const fr::Priorities::Turn turn{priorities};
  if (turn.population().total == 0) throw py::value_error{"nothing to draw from"};
  const double share = turn.population().total / static_cast<double>(batch_size);
  for (std::size_t round = 0; round < rounds; ++round) {
    fr::WordStream words{{seed, 0}, round};
    for (std::size_t i = 0; i < batch_size; ++i) {
      targets[i] = (static_cast<double>(i) + fr::fraction(words.next())) * share;
    }
    const auto start = std::chrono::steady_clock::now();
    turn.find(targets, drawn);
    spent += std::chrono::steady_clock::now() - start;
    std::int64_t* const row = tickets.mutable_data() + round * batch_size;
    for (std::size_t i = 0; i < batch_size; ++i) row[i] = static_cast<std::int64_t>(drawn[i].ticket);
  }
  return {tickets, std::chrono::duration<double>(spent).count()};
}

}  // namespace

PYBIND11_MODULE(_tree_timer, m) {
  py::module_::import("fastreplay");
  m.def("draw", &draw, py::arg("priorities"), py::arg("batch_size"), py::arg("rounds"), py::arg("seed"));
}
