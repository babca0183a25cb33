# SPDX-License-Identifier: MIT
"""What is kept of a buffer in a folder: segments of its transitions, and one manifest that says what counts."""
