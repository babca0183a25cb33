# SPDX-License-Identifier: MIT
"""The file of a ring: who has it open, and what it says of itself before the ring's own bytes.

A page that tells what it is, and two places for what was confirmed last, which are written by turns and carry a
checksum: whichever write a loss of power cuts short, the one before stands. What comes after them is the core's.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
import stat
import struct
import sys
import zlib
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from fastreplay import _core
from fastreplay.checkpoint.folder import Folder
from fastreplay.checkpoint.said import Said, parsed

__all__ = ["RingFile"]

_MAGIC = b"fastreplay ring\n"
_VERSION = 1
_PAGE = 4096
_HEAD = struct.Struct("<16sIQ")  # magic, version, bytes of a place; then its checksum
_PLACE = struct.Struct("<II")  # checksum of the text, its length
_MOST_PLACE = 1 << 26
# What earlier files do not say of their rings.
_SAID_LATER = {"share_next": False}
_MOUNTS = "/proc/self/mountinfo"
_GET_VERSION = 0x80087601  # FS_IOC_GETVERSION of linux/fs.h
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
# Other machines may write to them behind this one's back, and what is mapped is not told.
_NETWORKS = {
    *("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "ceph", "afs", "lustre", "gpfs", "fuse.sshfs", "fuse.glusterfs"),
}


class RingFile:
    """The file of a ring, which nobody else can open meanwhile.

    Attributes:
        is_new: Whether there was no such file.

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
        self.path = _checked(path)
        self.form: dict[str, Any] = json.loads(json.dumps(form))
        self.is_new = False
        self.is_failed = False
        self._num_bytes = num_bytes
        self._fits = fits
        self._new: str | None = None  # the name of a file that is being made
        self._file: FileIO | None = None
        self._number = 0

    def open(self) -> _core.MappedFile:
        """Open the file, or make one; whatever interrupts this, `give_up` undoes it.

        Returns:
            What its regions are taken from.

        Raises:
            OSError, RuntimeError, ValueError: As the constructor.
        """
        try:
            self._file = FileIO(self.path, "r+")
        except FileNotFoundError:
            self._make()
        if not stat.S_ISREG(os.fstat(self._fd).st_mode):
            raise ValueError("expected a file")
        if not _lock(self._fd) or (self.is_new and self._is_removed()):  # by who cleared up, before it was locked
            raise RuntimeError(self._elsewhere())
        self._room, self.confirmed = self._begin() if self.is_new else self._found()
        self.memory = _core.MappedFile(self._fd, _PAGE + 2 * self._room, self.is_new, self._fits)
        return self.memory

    @property
    def _fd(self) -> int:
        return -1 if self._file is None else self._file.fileno()

    def _elsewhere(self) -> str:
        return f"path: {self.path} is open in another process, or as another buffer of this one"

    def _make(self) -> None:
        folder, name = os.path.split(self.path)
        free = shutil.disk_usage(folder).free  # asked first: to find out by filling it takes others' room, too
        if self._num_bytes > free:
            text = f"the ring would take {self._num_bytes:,} bytes, and {free:,} are free"
            raise OSError(errno.ENOSPC, text, self.path)
        _remove_leftovers(folder, name)
        self.is_new = True
        self._new = str(Path(folder) / f".{name}.{secrets.token_hex(8)}.new")
        self._file = FileIO(self._new, "x+")

    def _begin(self) -> tuple[int, Confirmed]:
        room = -(-(2 * len(json.dumps(self.form)) + _PAGE) // _PAGE) * _PAGE
        head = _HEAD.pack(_MAGIC, _VERSION, room)
        os.posix_fallocate(self._fd, 0, _PAGE + 2 * room)
        _write(self._fd, head + struct.pack("<I", zlib.crc32(head)), 0)
        return room, Confirmed("", 0, 0, {})

    def _found(self) -> tuple[int, Confirmed]:
        head = os.pread(self._fd, _HEAD.size + 4, 0)
        if head[: len(_MAGIC)] != _MAGIC or len(head) < _HEAD.size + 4:
            raise ValueError("expected a file of a ring")
        _, version, room = _HEAD.unpack_from(head)
        if version != _VERSION:
            raise ValueError(f"expected version {_VERSION}, got {version}")
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
        self._check_length(said.integer("bytes"))
        if not 0 <= end - first <= self.form["capacity"]:
            said.refuse(f"at most {self.form['capacity']} transitions", (first, end))
        return room, Confirmed(said.text("life"), first, end, said.below("buffer").entries)

    def _refuse(self, offset: int, expected: str) -> NoReturn:
        raise ValueError(f"expected {expected} at byte {offset}; the file is damaged")

    def _read(self, offset: int, room: int) -> Said | None:
        """Return what is confirmed in a place; None where it is not whole."""
        place = os.pread(self._fd, room, offset)
        if len(place) < _PLACE.size:
            return None
        checksum, length = _PLACE.unpack_from(place)
        text = place[_PLACE.size : _PLACE.size + length]
        if not text or len(text) < length or zlib.crc32(text) != checksum:
            return None
        return parsed(text, "what it says")

    def _check_form(self, form: dict[str, Any]) -> None:
        form = _SAID_LATER | form
        for name, expected in self.form.items():
            if form.get(name) != expected:
                raise ValueError(f"{name}: expected {form.get(name)!r}, as the file has it, got {expected!r}")

    def check_end(self) -> None:
        """Refuse a file that goes on after its ring.

        Raises:
            ValueError: It does.
        """
        self._check_length(self.memory.end)

    def _check_length(self, expected: int) -> None:
        num_bytes = os.fstat(self._fd).st_size
        if num_bytes != expected:
            raise ValueError(f"expected {expected} bytes, got {num_bytes}")

    def is_as_left(self) -> bool:
        """Whether this very file is as who had it open left it: then nothing in it was lost.

        The machine has run ever since; and it is no copy, which may have been made in the midst of writes.
        """
        return self.confirmed.life == self._life()

    def _life(self) -> str:
        found = os.fstat(self._fd)
        return f"{_boot()} {found.st_dev} {found.st_ino} {_generation(self._fd)}"

    def confirm(self, first: int, end: int, buffer: dict[str, Any], *, is_opening: bool = False) -> None:
        """Wait until the disk has all of the file; then say that it has tickets [first, end), and wait for that.

        The wait before is for the other place, too: what is written over is never what a loss of power would need. A
        new file has none. The wait after is for who relies on it; what an opening says counts for this life, as long as
        which the page cache keeps it.

        Args:
            first: The first of them.
            end: One past the last.
            buffer: What to say of the buffer beside.
            is_opening: Whether nobody does yet.

        Raises:
            OSError: The disk has it not. It is not asked again: what it could not write may pass for written.
        """
        if self.is_failed:
            raise OSError(f"{self.path}: the disk failed before, and what it has is not known; save it elsewhere")
        if self._is_removed():
            raise OSError(f"{self.path}: the file was removed, and nobody can open it again; save it elsewhere")
        number, confirmed = self._number + 1, Confirmed(self._life(), first, end, buffer)
        said = confirmed._asdict() | {"number": number, "bytes": self.memory.end, "form": self.form}
        text = json.dumps(said).encode()
        if len(text) > self._room - _PLACE.size:
            raise ValueError(f"{self.path}: {len(text)} bytes to say of a ring, in a place of {self._room}")
        try:
            if self._new is None:
                os.fsync(self._fd)
            place = _PLACE.pack(zlib.crc32(text), len(text)) + text
            _write(self._fd, place, _PAGE + number % 2 * self._room)
            if self._new is not None or not is_opening:  # a name is given to what the disk has
                os.fsync(self._fd)
        except OSError:
            self.is_failed = True
            raise
        self._number, self.confirmed = number, confirmed

    def name(self) -> None:
        """Give a new file its name, all of which the disk has.

        Raises:
            RuntimeError: Somebody else has made one of that name meanwhile.
            OSError: It cannot be.
        """
        if self._new is None:
            return
        try:
            os.link(self._new, self.path)
        except (FileExistsError, FileNotFoundError):  # of who made it, too, and was first
            raise RuntimeError(self._elsewhere()) from None
        Path(self._new).unlink()
        self._new = None
        with Folder(os.path.dirname(self.path)) as folder:  # noqa: PTH120
            folder.sync()

    def is_over(self) -> bool:
        """Whether nothing is to be confirmed any more: it is closed, was removed, or the disk failed."""
        return self._file is None or self.is_failed or self._is_removed()

    def _is_removed(self) -> bool:
        return os.fstat(self._fd).st_nlink == 0

    def give_up(self) -> None:
        """Let others open it, whatever of it is still mapped: nobody uses that."""
        if self._file is not None:
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
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
            self._file = None


class Confirmed(NamedTuple):
    """What a file said last: in which life of which file, tickets [first, end), and of the buffer."""

    life: str
    first: int
    end: int
    buffer: dict[str, Any]


def _checked(path: str) -> str:
    """Return where a path leads in the end, once it is known that rings can lie there."""
    if not _core.MAPS_FILES or sys.byteorder != "little":
        raise OSError("path: rings in files need Linux, on a machine that stores the low byte first")
    if not path or "\0" in path:
        raise ValueError(f"path: expected the path of a file, got {path!r}")
    real = os.path.realpath(path)
    kind = _network(real)
    if kind is not None:
        raise OSError(f"path: {real} lies on {kind}, whose files other machines may change; use a disk of this one")
    return real


def _network(path: str) -> str | None:
    """Return the kind of the network that a file lies on, or will; of a path without links."""
    kind, length = "", 0
    with suppress(OSError), open(_MOUNTS) as lines:  # noqa: PTH123
        for line in lines:
            before, _, after = line.partition(" - ")
            point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), before.split()[4])
            is_inside = path == point or path.startswith(point.rstrip("/") + "/")
            if is_inside and len(point) >= length:  # of several at one place, the last one hides the others
                kind, length = after.split()[0], len(point)
    return kind if kind in _NETWORKS else None


def _boot() -> str:
    return _BOOT_ID.read_text().strip()


def _generation(fd: int) -> int:
    """Return what tells a file from a removed one whose number it was given; 0 where the file system does not say."""
    import fcntl

    found = bytearray(8)
    try:
        fcntl.ioctl(fd, _GET_VERSION, found)
    except OSError:
        return 0
    return int.from_bytes(found, sys.byteorder)


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


def _remove_leftovers(folder: str, name: str) -> None:
    """Remove what those left who were killed while they made the file; who still does holds a lock."""
    pattern = re.compile(rf"\.{re.escape(name)}\.[0-9a-f]{{16}}\.new")
    for each in Path(folder).iterdir():
        if pattern.fullmatch(each.name):
            with suppress(OSError), FileIO(each, "r+") as file:
                if _lock(file.fileno()):
                    each.unlink()
