# SPDX-License-Identifier: MIT
"""Minibatches come out: their memory, from taken to given back, and the loader."""

from __future__ import annotations
