# SPDX-License-Identifier: MIT
"""What a transition is made of, and how its fields nest."""

from __future__ import annotations

from fastreplay.schema.schema import Field, FieldLike, Schema

__all__ = ["Field", "FieldLike", "Schema"]
