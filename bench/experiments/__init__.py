# SPDX-License-Identifier: MIT
"""The questions that are answered by measuring; a file each, which `run.py` knows by its name."""
