# SPDX-License-Identifier: MIT
"""Stand-ins for Stable-Baselines3's classes; `fastreplay.sb3` gives them out."""

from __future__ import annotations
