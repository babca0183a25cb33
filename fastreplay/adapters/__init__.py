# SPDX-License-Identifier: MIT
"""Stand-ins for other libraries' buffers: what they share, and one place a library."""

from __future__ import annotations
