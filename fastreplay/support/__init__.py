# SPDX-License-Identifier: MIT
"""Tools that know nothing of replay: checks, containers, the machine's memory, torch's C functions."""

from __future__ import annotations
