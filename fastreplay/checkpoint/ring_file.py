# SPDX-License-Identifier: MIT
"""The file of a ring: who has it open, and what it says of itself before the ring's own bytes.

A page that tells what it is, and two places for what was confirmed last, which are written by turns and carry a
checksum: whichever write a loss of power cuts short, the one before stands. What comes after them is the core's.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
import stat
import struct
import sys
import zlib
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from fastreplay import _core
from fastreplay.checkpoint.said import Said, parsed

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["RingFile"]

_MAGIC = b"fastreplay ring\n"
_VERSION = 1
_PAGE = 4096
_HEAD = struct.Struct("<16sIQ")  # magic, version, bytes of a place; then its checksum
_PLACE = struct.Struct("<II")  # checksum of the text, its length
_MOST_PLACE = 1 << 26
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
# Other machines may write to them behind this one's back, and what is mapped is not told.
_NETWORKS = {
    *("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "ceph", "afs", "lustre", "gpfs", "fuse.sshfs", "fuse.glusterfs"),
}


class RingFile:
    """The open file of a ring, which nobody else can open meanwhile.

    Args:
        path: Where it is; it is made where there is none.
        form: What the ring is, in JSON: a file of another is refused.
        num_bytes: Of the ring, at least.
        fits: Whether it fits into memory, so that its pages are to come together.

    Raises:
        OSError: It cannot be opened, or made: also on a file system that cannot map files, or keep room for them.
        RuntimeError: It is open elsewhere.
        ValueError: It is something else, damaged, or of another ring.
    """

    def __init__(self, path: str, form: dict[str, Any], num_bytes: int, *, fits: bool) -> None:
        _check_system(path)
        self.path = path
        self.form: dict[str, Any] = json.loads(json.dumps(form))
        self._new: str | None = None  # the name of a file that is being made
        self._number = 0
        self.is_failed = False
        self._fd = -1
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            self._make(num_bytes)
        try:
            self._lock()
            self._room, self.confirmed = self._begin() if self.is_new else self._found()
            begin = _PAGE + 2 * self._room
            self.memory = _core.MappedFile(os.dup(self._fd), begin, self.is_new, fits)  # a lock of both
        except BaseException:
            self.give_up()
            raise

    @property
    def is_new(self) -> bool:
        """Whether there was no such file."""
        return self._new is not None

    def _make(self, num_bytes: int) -> None:
        folder, name = os.path.split(self.path)
        free = shutil.disk_usage(folder).free  # asked first: to find out by filling it takes others' room, too
        if num_bytes > free:
            text = f"the ring would take {num_bytes:,} bytes, and {free:,} are free"
            raise OSError(errno.ENOSPC, text, self.path)
        _remove_leftovers(folder, name)
        self._new = str(Path(folder) / f".{name}.{secrets.token_hex(8)}.new")
        self._fd = os.open(self._new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)

    def _lock(self) -> None:
        if not stat.S_ISREG(os.fstat(self._fd).st_mode):
            raise ValueError(f"path: expected a file, and {self.path} is none")
        if not _lock(self._fd):
            raise RuntimeError(f"path: {self.path} is open in another process, or as another buffer of this one")

    def _begin(self) -> tuple[int, Confirmed]:
        room = -(-(2 * len(json.dumps(self.form)) + _PAGE) // _PAGE) * _PAGE
        head = _HEAD.pack(_MAGIC, _VERSION, room)
        os.posix_fallocate(self._fd, 0, _PAGE + 2 * room)
        _write(self._fd, head + struct.pack("<I", zlib.crc32(head)), 0)
        return room, Confirmed("", 0, 0, {})

    def _found(self) -> tuple[int, Confirmed]:
        head = os.pread(self._fd, _HEAD.size + 4, 0)
        if head[: len(_MAGIC)] != _MAGIC or len(head) < _HEAD.size + 4:
            raise ValueError(f"{self.path}: expected a file of a ring")
        _, version, room = _HEAD.unpack_from(head)
        if version != _VERSION:
            raise ValueError(f"{self.path}: expected version {_VERSION}, got {version}")
        if zlib.crc32(head[: _HEAD.size]) != struct.unpack_from("<I", head, _HEAD.size)[0]:
            self._refuse(0, "another checksum")
        if not 0 < room <= _MOST_PLACE or room % _PAGE:
            self._refuse(20, f"no {room} bytes")
        places = [place for place in (self._read(_PAGE + i * room, room) for i in range(2)) if place is not None]
        if not places:
            self._refuse(_PAGE, "one of two places whose checksum fits")
        said = max(places, key=lambda place: place.integer("number"))
        self._number = said.integer("number")
        self._check_form(said.below("form").entries)
        first, end = said.integer("first"), said.integer("end")
        if not 0 <= end - first <= self.form["capacity"]:
            said.refuse(f"at most {self.form['capacity']} transitions", (first, end))
        return room, Confirmed(said.text("life"), first, end, said.below("buffer").entries)

    def _refuse(self, offset: int, expected: str) -> NoReturn:
        raise ValueError(f"{self.path}: expected {expected} at byte {offset}; the file is damaged")

    def _read(self, offset: int, room: int) -> Said | None:
        """Return what is confirmed in a place; None where it is not whole."""
        place = os.pread(self._fd, room, offset)
        if len(place) < _PLACE.size:
            return None
        checksum, length = _PLACE.unpack_from(place)
        text = place[_PLACE.size : _PLACE.size + length]
        if not text or len(text) < length or zlib.crc32(text) != checksum:
            return None
        return parsed(text, self.path)

    def _check_form(self, form: dict[str, Any]) -> None:
        for name, expected in self.form.items():
            if form.get(name) != expected:
                raise ValueError(f"{name}: expected {form.get(name)!r}, as {self.path} has it, got {expected!r}")

    def check_end(self) -> None:
        """Refuse a file that goes on after its ring.

        Raises:
            ValueError: It does.
        """
        num_bytes = os.fstat(self._fd).st_size
        if num_bytes != self.memory.end:
            raise ValueError(f"expected {self.memory.end} bytes, got {num_bytes}")

    def is_as_left(self) -> bool:
        """Whether this very file is as who had it open left it: then nothing in it was lost.

        The machine has run ever since; and it is no copy, which may have been made in the midst of writes.
        """
        return self.confirmed.life == self._life()

    def _life(self) -> str:
        found = os.fstat(self._fd)
        return f"{_boot()} {found.st_dev} {found.st_ino}"

    def confirm(self, first: int, end: int, buffer: dict[str, Any]) -> None:
        """Wait until the disk has all of the file; then say that it has tickets [first, end), and wait for that.

        Raises:
            OSError: The disk has it not. It is not asked again: what it could not write may pass for written.
        """
        if self.is_failed:
            raise OSError(f"{self.path}: the disk failed before, and what it has is not known; save it elsewhere")
        said = {"number": self._number + 1, "life": self._life(), "first": first, "end": end}
        text = json.dumps(said | {"form": self.form, "buffer": buffer}).encode()
        if len(text) > self._room - _PLACE.size:
            raise ValueError(f"{self.path}: {len(text)} bytes to say of a ring, in a place of {self._room}")
        try:
            self._wait()
            place = _PLACE.pack(zlib.crc32(text), len(text)) + text
            _write(self._fd, place, _PAGE + (self._number + 1) % 2 * self._room)
            self._wait()
        except OSError:
            self.is_failed = True
            raise
        self._number += 1
        self.confirmed = Confirmed(self._life(), first, end, buffer)

    def _wait(self) -> None:
        os.fsync(self._fd)

    def name(self) -> None:
        """Give a new file its name, all of which the disk has.

        Raises:
            OSError: There is one of that name by now; or it cannot be.
        """
        if self._new is None:
            return
        os.link(self._new, self.path)
        Path(self._new).unlink()
        self._new = None
        folder = os.open(os.path.dirname(self.path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)  # noqa: PTH120
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def give_up(self) -> None:
        """Let others open it, whatever of it is still mapped: nobody uses that."""
        if self._fd >= 0:
            _unlock(self._fd)
        self.close()

    def leave(self) -> None:
        """In the child after a fork: leave the file to the parent."""
        self.memory.leave()
        self._new = None
        self.close()

    def close(self) -> None:
        """Close it, as far as no region of it is in use; and remove it, where it has no name yet."""
        if self._new is not None:
            with suppress(OSError):
                Path(self._new).unlink()
            self._new = None
        if self._fd >= 0:
            with suppress(OSError):
                os.close(self._fd)
            self._fd = -1


class Confirmed(NamedTuple):
    """What a file said last: in which life of which file, tickets [first, end), and of the buffer."""

    life: str
    first: int
    end: int
    buffer: dict[str, Any]


def _check_system(path: str) -> None:
    if not _core.MAPS_FILES or sys.byteorder != "little":
        raise OSError("path: rings in files need Linux, on a machine that stores the low byte first")
    if not path or not os.path.basename(path):  # noqa: PTH119
        raise ValueError(f"path: expected the path of a file, got {path!r}")
    kind = _network(os.path.dirname(path))  # noqa: PTH120
    if kind is not None:
        raise OSError(f"path: {path} lies on {kind}, whose files other machines may change; use a disk of this one")


def _network(folder: str) -> str | None:
    """Return the kind of the network that a folder lies on."""
    mounts: list[tuple[str, str]] = []
    real = os.path.realpath(folder)
    with suppress(OSError), open("/proc/self/mountinfo") as lines:  # noqa: PTH123
        for line in lines:
            before, _, after = line.partition(" - ")
            mounts.append((before.split()[4], after.split()[0]))
    inside = [(point, kind) for point, kind in mounts if real == point or real.startswith(point.rstrip("/") + "/")]
    kind = max(inside, key=lambda mount: len(mount[0]))[1] if inside else ""
    return kind if kind in _NETWORKS else None


def _boot() -> str:
    return _BOOT_ID.read_text().strip()


def _lock(fd: int) -> bool:
    import fcntl

    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _unlock(fd: int) -> None:
    import fcntl

    with suppress(OSError):
        fcntl.flock(fd, fcntl.LOCK_UN)


def _write(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written


def _leftovers(folder: str, name: str) -> Iterator[str]:
    for each in os.listdir(folder or "."):  # noqa: PTH208
        if each.startswith(f".{name}.") and each.endswith(".new"):
            yield os.path.join(folder, each)  # noqa: PTH118


def _remove_leftovers(folder: str, name: str) -> None:
    """Remove what those left who were killed while they made the file; who still does holds a lock."""
    for each in _leftovers(folder, name):
        with suppress(OSError):
            fd = os.open(each, os.O_RDWR | os.O_CLOEXEC)
            try:
                if _lock(fd):
                    Path(each).unlink()
            finally:
                os.close(fd)
