# SPDX-License-Identifier: MIT
"""What `os` is asked for while a folder is saved into: recorded, made to fail, and what a loss of power leaves of it.

The file system of the model promises what POSIX does, and no more: bytes are on the disk once fsync of their file has
returned, names once that of their folder has. Until then each may be there or not, whatever the others are.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator

    from typing_extensions import Self

NAMES = ("mkdir", "open", "writev", "fsync", "rename", "unlink", "close", "listdir")
FULL = ("mkdir", "open", "writev", "fsync", "rename")  # what may say that there is no space left


class Dead(BaseException):
    """Stands for the end of the process: nothing is done after it."""


class Call(NamedTuple):
    name: str
    folder: str  # that it is of, as it was called when it was opened
    file: str  # "" for the folder itself
    data: bytes = b""  # what was written
    new: str = ""  # the name that is given, or "new" for a file that is made
    has_failed: bool = False


class Calls:
    """Takes the place of what `os` and `fcntl` do below a folder, as long as it is entered.

    Args:
        root: Where it looks.
        at: The call at which something happens, by number.
        kind: What: an errno, `Dead`, "short" for a write of less, "late" for EIO of what was done.
    """

    def __init__(self, root: Path, at: int = -1, kind: Any = None) -> None:
        self.root, self.at, self.kind = str(root), at, kind
        self.done: list[Call] = []
        self.came = False  # to the call
        self._fds: dict[int, tuple[str, str]] = {}
        self._real = {name: getattr(os, name) for name in NAMES}
        self._flock = fcntl.flock
        self._lock = threading.RLock()
        self._is_dead = False

    def __enter__(self) -> Self:
        for name in NAMES:
            setattr(os, name, getattr(self, f"_{name}"))
        setattr(fcntl, "flock", self._locked)  # noqa: B010 - a method for a function
        return self

    def __exit__(self, *_: object) -> None:
        for name, real in self._real.items():
            setattr(os, name, real)
        setattr(fcntl, "flock", self._flock)  # noqa: B010 - as above
        for fd in self._fds:  # of a process that is dead
            with suppress(OSError):
                os.close(fd)

    def _do(self, call: Call, real: Any) -> Any:
        with self._lock:
            if self._is_dead:
                raise Dead
            is_now = len(self.done) == self.at
            self.came |= is_now
            if not is_now or self.kind == "short":
                self.done.append(call)
                try:
                    return real()
                except OSError:  # the system's own
                    self.done[-1] = call._replace(has_failed=True)
                    raise
            if self.kind == "late" or call.name == "close":
                real()
            if self.kind is Dead:
                self._is_dead = True
                raise Dead
            self.done.append(call._replace(has_failed=self.kind != "late"))
            number = errno.EIO if self.kind == "late" else self.kind
            raise OSError(number, os.strerror(number), call.file or call.folder)

    def _place(self, path: Any, dir_fd: int | None) -> tuple[str, str] | None:
        """Return the folder and the name, if they are below the root."""
        if dir_fd is not None:
            return (self._fds[dir_fd][0], os.fsdecode(path)) if dir_fd in self._fds else None
        text = os.fsdecode(path) if not isinstance(path, int) else ""
        if text == self.root or not text.startswith(self.root + "/"):
            return None
        return os.path.split(text)

    def _open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        def real() -> int:
            return self._real["open"](path, flags, mode, dir_fd=dir_fd)  # type: ignore[no-any-return]

        if flags & os.O_DIRECTORY and (path == self.root or str(path).startswith(self.root)):
            place: tuple[str, str] | None = (str(path), "")
        else:
            place = self._place(path, dir_fd)
        if place is None:
            return real()
        is_new = flags & os.O_CREAT and not os.access(path, os.F_OK, dir_fd=dir_fd)
        fd: int = self._do(Call("open", *place, new="new" if is_new else ""), real)
        self._fds[fd] = place
        return fd

    def _writev(self, fd: int, parts: Any) -> int:
        if fd not in self._fds:
            return self._real["writev"](fd, parts)  # type: ignore[no-any-return]
        if self.kind == "short" and len(self.done) == self.at:
            parts = [parts[0][: max(1, len(parts[0]) // 2)]]
        call = Call("writev", *self._fds[fd], b"".join(parts))
        return self._do(call, lambda: self._real["writev"](fd, parts))  # type: ignore[no-any-return]

    def _fsync(self, fd: int) -> None:
        if fd in self._fds:  # what the machine's disk does is nobody's to see here
            self._do(Call("fsync", *self._fds[fd]), lambda: None)

    def _close(self, fd: int) -> None:
        if fd not in self._fds:
            return self._real["close"](fd)  # type: ignore[no-any-return]
        place = self._fds.pop(fd)
        try:
            return self._do(Call("close", *place), lambda: self._real["close"](fd))  # type: ignore[no-any-return]
        except Dead:
            with suppress(OSError):
                self._real["close"](fd)
            raise

    def _locked(self, fd: int, operation: int) -> None:
        if fd not in self._fds:
            return self._flock(fd, operation)
        return self._do(Call("flock", *self._fds[fd]), lambda: self._flock(fd, operation))  # type: ignore[no-any-return]

    def _mkdir(self, path: Any, mode: int = 0o777) -> None:
        place = self._place(path, None)
        if place is None:
            return self._real["mkdir"](path, mode)  # type: ignore[no-any-return]
        return self._do(Call("mkdir", *place, new="new"), lambda: self._real["mkdir"](path, mode))  # type: ignore[no-any-return]

    def _rename(self, old: Any, new: Any, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None) -> None:
        def real() -> None:
            self._real["rename"](old, new, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

        place = self._place(old, src_dir_fd)
        if place is None:
            real()
        else:
            self._do(Call("rename", *place, new=os.fsdecode(new)), real)

    def _unlink(self, path: Any, *, dir_fd: int | None = None) -> None:
        place = self._place(path, dir_fd)
        if place is None:
            return self._real["unlink"](path, dir_fd=dir_fd)  # type: ignore[no-any-return]
        return self._do(Call("unlink", *place), lambda: self._real["unlink"](path, dir_fd=dir_fd))  # type: ignore[no-any-return]

    def _listdir(self, path: Any = ".") -> list[str]:
        if path not in self._fds:
            return self._real["listdir"](path)  # type: ignore[no-any-return]
        return self._do(Call("listdir", *self._fds[path]), lambda: self._real["listdir"](path))  # type: ignore[no-any-return]

    def fails_twice(self) -> bool:
        """Tell whether a file whose fsync had failed was waited for again."""
        failed = {call[1:3] for call in self.done if call.name == "fsync" and call.has_failed}
        waits = [call[1:3] for call in self.done if call.name == "fsync"]
        return any(waits.count(each) > 1 and waits[-1] == each for each in failed if each[1])


class _File:
    """A file, or a folder in its parent's eyes; what lies in it is in `content`."""

    def __init__(self, content: bytes = b"", *, is_folder: bool = False) -> None:
        self.content = self.durable = content
        self.is_folder = is_folder

    def possible(self, rng: random.Random) -> list[bytes]:
        """Return what may be read of it after a loss of power."""
        if self.durable == self.content:
            return [self.content]
        start, size = len(self.durable), len(self.content)
        cut = rng.randrange(start, size)
        zeros = self.content[:cut] + bytes(size - cut)
        garbage = self.content[:cut] + rng.randbytes(size - cut)
        return [self.durable, self.content, self.content[:cut], zeros, garbage]


class Disk:
    """What is on the disk, and what may be.

    Args:
        root: Where the folders lie; all that lies there now is on the disk.
    """

    def __init__(self, root: Path) -> None:
        self._names: dict[tuple[str, str], _File] = {}  # as a process sees them
        self._durable: dict[tuple[str, str], _File] = {}
        self._pending: dict[tuple[str, str], list[_File | None]] = defaultdict(list)
        for path in root.rglob("*"):
            file = _File(is_folder=True) if path.is_dir() else _File(path.read_bytes())
            self._names[str(path.parent), path.name] = file
        self._durable.update(self._names)

    def _set(self, place: tuple[str, str], file: _File | None) -> None:
        self._pending[place].append(file)
        if file is None:
            self._names.pop(place, None)
        else:
            self._names[place] = file

    def do(self, call: Call) -> None:
        """Take a call into account."""
        place = (call.folder, call.file)
        if call.has_failed:
            return
        if call.name in {"open", "mkdir"} and call.new:
            self._set(place, _File(is_folder=call.name == "mkdir"))
        elif call.name == "writev":
            self._names[place].content += call.data
        elif call.name == "rename":
            self._set((call.folder, call.new), self._names[place])
            self._set(place, None)
        elif call.name == "unlink":
            self._set(place, None)
        elif call.name == "fsync" and call.file:
            if place in self._names:  # else it has another name by now, and is not waited for under that
                self._names[place].durable = self._names[place].content
        elif call.name == "fsync":
            for name in [name for name in self._pending if name[0] == call.folder]:
                del self._pending[name]
                self._durable.pop(name, None)
                if name in self._names:
                    self._durable[name] = self._names[name]

    def states(self, rng: random.Random, most: int) -> Iterator[dict[tuple[str, str], bytes | None]]:
        """Yield what may be there after a loss of power now: contents by folder and name, None of folders.

        First all names as they were, and all as they are, then any mixture.
        """
        for number in range(most):
            names = dict(self._durable)
            for place, later in self._pending.items():
                before = self._durable.get(place)
                chosen = (before, later[-1])[number] if number < 2 else rng.choice([before, *later])
                names.pop(place, None)
                if chosen is not None:
                    names[place] = chosen
            yield {
                place: None if file.is_folder else file.content if number == 1 else rng.choice(file.possible(rng))
                for place, file in names.items()
            }
            if not self._pending and all(file.durable == file.content for file in names.values()):
                return


def lay(state: dict[tuple[str, str], bytes | None], root: Path, target: Path) -> None:
    """Make files of a state of what is below a root, below another folder: those whose folders are there."""
    target.mkdir()
    for (folder, name), content in sorted(state.items()):
        path = target / Path(folder).relative_to(root) / name
        if path.parent.is_dir():
            path.mkdir() if content is None else path.write_bytes(content)
