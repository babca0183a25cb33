# SPDX-License-Identifier: MIT
"""To a device and back: the CUDA part's library, page-locked minibatches, the ring over there."""

from __future__ import annotations
