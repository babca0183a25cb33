// SPDX-License-Identifier: MIT
// The target update theta_target <- tau * theta + (1 - tau) * theta_target over a table of chunks, on the CPU. Knows
// neither networks nor threads.
#pragma once

#include <cstdint>
#include <span>

#include "target/chunks.hpp"

namespace fastreplay {

// Instruction sets there are kernels for. kBaseline has no fused multiply-add, like torch's there.
enum class Level : std::uint8_t { kBaseline, kAvx2, kAvx512 };

// The best level of this CPU.
[[nodiscard]] Level best_level() noexcept;

// Updates every chunk. The bits are those of torch.lerp_ at the same level, but for tau = 1, which copies.
void update(std::span<const Chunk> chunks, double tau, Level level) noexcept;

// Sets every target to keep * target, rounded, plus take * online. The bits are those of torch.mul by `keep`
// and torch.add with alpha = `take` at the same level. Chunks of float32 or of float64 pairs only.
void average(std::span<const Chunk> chunks, double keep, double take, Level level) noexcept;

}  // namespace fastreplay
