# SPDX-License-Identifier: MIT
"""Data that others collected: tables of steps in files and libraries of many kinds, and their way to transitions."""
