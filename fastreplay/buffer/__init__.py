# SPDX-License-Identifier: MIT
"""Transitions go in and stay: the replay buffer, its insert path, its pickles."""

from __future__ import annotations
