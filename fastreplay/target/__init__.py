# SPDX-License-Identifier: MIT
"""Targets follow: pairs of tensors, what watches and what moves them."""

from __future__ import annotations
