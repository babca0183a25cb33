# SPDX-License-Identifier: MIT
"""Bytes go past the system's cache of files where they can, and arrive where they cannot."""

from __future__ import annotations

import errno
import fcntl
import os
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from fastreplay.checkpoint import segment
from fastreplay.checkpoint.folder import Folder
from fastreplay.checkpoint.past_cache import aligned
from fastreplay.checkpoint.segment import Entry, check_read, checksums_of, read

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="what Linux calls O_DIRECT")
PAGE = 4096
SIZES = (0, 1, PAGE - 1, PAGE, PAGE + 1, 5 * PAGE + 777)


def filled(size: int) -> Any:
    memory = aligned(size)
    memory[:] = np.random.default_rng(size).integers(0, 256, size, np.uint8)
    return memory


def written(path: Path, size: int) -> bytes:
    with Folder(str(path)) as folder:
        folder.finish(folder.write("file", [filled(size)], past_cache=True))
    return (path / "file").read_bytes()


def is_direct(fd: int) -> bool:
    return bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT)


def told_calls(name: str, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, bool]]:
    """Return what `os.writev` or `os.readv` is called for from now on: how many bytes, and whether past the cache."""
    calls: list[tuple[int, bool]] = []
    real: Any = getattr(os, name)

    def told(fd: int, parts: Any) -> Any:
        calls.append((sum(map(len, parts)), is_direct(fd)))
        return real(fd, parts)

    monkeypatch.setattr(os, name, told)
    return calls


@pytest.fixture
def direct_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, bool]]:
    """Return what is written: how many bytes are asked for, and whether past the cache."""
    with (tmp_path / "probe").open("wb") as file:
        try:
            fcntl.fcntl(file, fcntl.F_SETFL, os.O_DIRECT)
        except OSError:
            pytest.skip("the file system keeps all files in memory")
    (tmp_path / "probe").unlink()
    return told_calls("writev", monkeypatch)


@pytest.mark.parametrize("size", SIZES)
def test_whole_pages_go_past_the_cache(size: int, tmp_path: Path, direct_calls: Any) -> None:
    assert written(tmp_path, size) == filled(size).tobytes()
    whole = size - size % PAGE
    assert direct_calls == [(whole, True)] * (whole > 0) + [(size - whole, False)]


def refused(*_: object) -> Any:
    raise OSError(errno.EINVAL, "refused")


def first_in_part(real: Callable[..., int]) -> Callable[..., int]:
    """Write less than a page of what is past the cache, and then refuse."""
    calls: list[int] = []

    def write(fd: int, parts: Any) -> int:
        if is_direct(fd):
            calls.append(1)
            fcntl.fcntl(fd, fcntl.F_SETFL, 0)
            return real(fd, [parts[0][:100]]) if len(calls) == 1 else refused()
        return real(fd, parts)

    return write


@pytest.mark.parametrize("way", ["no such files", "no such writes", "in part"])
def test_a_file_system_that_has_it_otherwise(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, set_flags = os.writev, fcntl.fcntl
    if way == "no such files":
        monkeypatch.setattr(fcntl, "fcntl", lambda fd, what, flags=0: set_flags(fd, what) if not flags else refused())
    elif way == "no such writes":
        monkeypatch.setattr(os, "writev", lambda fd, parts: refused() if is_direct(fd) else real(fd, parts))
    else:
        monkeypatch.setattr(os, "writev", first_in_part(real))
    for size in SIZES:
        assert written(tmp_path, size) == filled(size).tobytes()
        (tmp_path / "file").unlink()


def test_an_error_of_the_disk_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, direct_calls: Any) -> None:
    def broken(*_: object) -> int:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "writev", broken)
    with pytest.raises(OSError, match="broken"):
        written(tmp_path, 2 * PAGE)
    assert not (tmp_path / "file").exists()


def got(path: Path, size: int) -> Any:
    memory = aligned(size)
    with path.open("rb", buffering=0) as file:
        read(file.fileno(), str(path), memory)
    return memory


@pytest.fixture
def only_on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> int:
        raise BlockingIOError

    monkeypatch.setattr(os, "preadv", missing)


@pytest.mark.parametrize("size", SIZES)
def test_what_only_the_disk_has_is_read_past_the_cache(
    size: int, tmp_path: Path, direct_calls: Any, only_on_disk: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(filled(size).tobytes())
    calls = told_calls("readv", monkeypatch)
    assert np.array_equal(got(tmp_path / "file", size), filled(size))
    whole = size - size % PAGE
    assert calls == [(whole, True)] * (whole > 0) + [(size - whole, False)] * (size > whole)


def test_what_the_cache_has_comes_from_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "fcntl", refused)
    (tmp_path / "file").write_bytes(filled(SIZES[-1]).tobytes())
    assert np.array_equal(got(tmp_path / "file", SIZES[-1]), filled(SIZES[-1]))


@pytest.mark.parametrize("way", ["no such files", "no such reads", "in part", "no such questions"])
def test_a_file_system_that_reads_otherwise(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, only_on_disk: None
) -> None:
    real, set_flags, size = os.readv, fcntl.fcntl, SIZES[-1]
    (tmp_path / "file").write_bytes(filled(size).tobytes())
    if way == "no such files":
        monkeypatch.setattr(fcntl, "fcntl", lambda fd, what, flags=0: set_flags(fd, what) if not flags else refused())
    elif way == "no such reads":
        monkeypatch.setattr(os, "readv", lambda fd, parts: refused() if is_direct(fd) else real(fd, parts))
    elif way == "in part":
        monkeypatch.setattr(os, "readv", first_in_part(real))
    else:
        monkeypatch.setattr(os, "preadv", refused)
    assert np.array_equal(got(tmp_path / "file", size), filled(size))


def test_what_was_lost_on_its_way_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = SIZES[-1]
    again: list[int] = []
    (tmp_path / "file").write_bytes(filled(size).tobytes())
    entry = Entry("file", 0, 0, (), checksums_of([filled(size)]), "")
    real = segment._read_on

    def told(fd: int, path: str, data: Any, done: int) -> None:
        again.append(done)
        real(fd, path, data, done)

    monkeypatch.setattr(segment, "_read_on", told)
    with (tmp_path / "file").open("rb", buffering=0) as file:
        memory = aligned(size)
        read(file.fileno(), "file", memory)
        check_read(file.fileno(), "file", entry, memory)
        assert len(again) == 1
        memory[PAGE : 2 * PAGE] = 0
        check_read(file.fileno(), "file", entry, memory)
        assert again[1:] == [0]
    assert np.array_equal(memory, filled(size))


def test_an_error_while_reading_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, direct_calls: Any, only_on_disk: None
) -> None:
    def broken(*_: object) -> int:
        raise OSError(errno.EIO, "broken")

    (tmp_path / "file").write_bytes(bytes(2 * PAGE))
    monkeypatch.setattr(os, "readv", broken)
    with pytest.raises(OSError, match="broken"):
        got(tmp_path / "file", 2 * PAGE)
