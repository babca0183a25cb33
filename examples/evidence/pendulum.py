# SPDX-License-Identifier: MIT
"""Many pendulums at once, to be swung up by three torques: a task that DQN learns in seconds.

The equations, the reward and the 200 steps of an episode are those of Gymnasium's Pendulum-v1, which
moves one pendulum in Python; `tests/test_why.py` compares the two step by step.
"""

from __future__ import annotations

import numpy as np
from environments import Array

GRAVITY, MASS, LENGTH, DT = 10.0, 1.0, 1.0, 0.05  # m/s^2, kg, m, s
MAX_SPEED = 8.0  # rad/s
TORQUES = np.array([-2.0, 0.0, 2.0])  # N m
EPISODE_STEPS = 200


class Pendulums:
    """`num_envs` pendulums that start an episode together; the time limit is the only end."""

    def __init__(self, num_envs: int, seed: int) -> None:
        self.num_envs = num_envs
        self.rng = np.random.default_rng(seed)
        self.reset()

    def reset(self) -> Array:
        """Begin an episode anywhere, at up to 1 rad/s; return the observations."""
        self.steps = 0
        self.angle = self.rng.uniform(-np.pi, np.pi, self.num_envs)  # 0 is upright
        self.speed = self.rng.uniform(-1, 1, self.num_envs)
        return self.observation()

    def observation(self) -> Array:
        """Return cosine, sine and speed, (num_envs, 3) float32."""
        return np.stack([np.cos(self.angle), np.sin(self.angle), self.speed], axis=1).astype(np.float32)

    def step(self, action: Array) -> tuple[Array, Array, bool]:
        """Apply the torques TORQUES[action]; return next observations, rewards (num_envs,), and whether time is up."""
        torque = TORQUES[action]
        angle = (self.angle + np.pi) % (2 * np.pi) - np.pi
        reward = -(angle**2 + 0.1 * self.speed**2 + 0.001 * torque**2)
        acceleration = 1.5 * GRAVITY / LENGTH * np.sin(self.angle) + 3 / (MASS * LENGTH**2) * torque
        self.speed = np.clip(self.speed + acceleration * DT, -MAX_SPEED, MAX_SPEED)
        self.angle = self.angle + self.speed * DT
        self.steps += 1
        return self.observation(), reward.astype(np.float32), self.steps == EPISODE_STEPS
