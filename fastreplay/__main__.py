# SPDX-License-Identifier: MIT
"""The command line: python -m fastreplay verify PATH, python -m fastreplay describe PATH."""

from __future__ import annotations

import argparse
import sys

from fastreplay.buffer.verify import describe, verify


def main() -> int:
    """Say what a checkpoint holds, and whether it is whole."""
    parser = argparse.ArgumentParser("python -m fastreplay", description="Look at checkpoints of replay buffers.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="verify | describe")
    texts = {"verify": "read all of it, and compare it with its checksums", "describe": "say what it holds"}
    for name, text in texts.items():
        command = commands.add_parser(name, help=text)
        command.add_argument("path", metavar="PATH", help="the folder of a checkpoint")
    arguments = parser.parse_args()
    try:
        print({"verify": verify, "describe": describe}[arguments.command](arguments.path))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if arguments.command == "verify":
        print("whole: every byte is what was saved")
    return 0


if __name__ == "__main__":
    sys.exit(main())
