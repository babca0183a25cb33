# SPDX-License-Identifier: MIT
"""Changes the bytes of checkpoints, and reads what comes of it: a ValueError that says what is wrong, or what is right.

    make fuzz SECONDS=600    # adds to tests/fuzz_executions.json how many were read

A case is the files of a checkpoint, in memory. One is made of another by changing what its manifest says, or bytes of a
segment, the checksums of both fitting again, since else the first of them ends it; now and then they do not. Ten times
as fast are manifests alone, changed in their text, of which is asked what each segment must be.

What is read in a way that no case was before is changed further. Where atheris is (`make fuzz` asks for it), libFuzzer
tells that by the branches of the readers' Python (fuzz_guided.py), and the fewest cases that reach all of them are kept
in tests/fuzz_corpus.tar.xz, with which everybody begins; elsewhere the message without its numbers tells it.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import io
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tarfile
import time
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

import fastreplay as fr
from fastreplay.buffer.described import Described
from fastreplay.buffer.verify import _forms
from fastreplay.checkpoint.load import check
from fastreplay.checkpoint.manifest import MANIFEST, parsed_manifest

SEEDS = Path(__file__).parent / "kept"
CORPUS = Path(__file__).parent / "fuzz_corpus.tar.xz"
BUILD = Path(__file__).parents[1] / "build" / "fuzz"
EXECUTIONS = Path(__file__).parent / "fuzz_executions.json"
KINDS = {"cases": "executions", "manifests": "manifests"}  # and what they are counted as
CHUNK = 1 << 20
ODD: list[Any] = [
    *(
        None,
        True,
        False,
        -1,
        0,
        1,
        2,
        2**31,
        2**62,
        2**63,
        2**70,
        10**400,
        1e308,
        0.5,
        "",
        "x",
        "../x",
        "records",
        [],
        {},
        [[]],
    ),
    *("uint8", "bool", "float16", "complex128", "longdouble", "object", "cuda", "numpy", "max", "all"),
]

ODD_TEXTS = [json.dumps(each).encode() for each in ODD]
Files = dict[str, bytes]


class MemoryFolder:
    """The files of a case, as a reader opens them."""

    path = "case"

    def __init__(self, files: Files) -> None:
        self.files = files

    def file(self, name: str) -> str:
        """Return what a message calls a file."""
        return name

    def open(self, name: str) -> int:
        """Open a file that is to be read."""
        if name not in self.files:
            raise FileNotFoundError(2, "no such file", name)
        fd = os.memfd_create("case")
        os.write(fd, self.files[name])
        os.lseek(fd, 0, os.SEEK_SET)
        return fd


def seeds() -> list[Files]:
    """Return the checkpoints that begin it: those of every kind that are kept."""
    folders = sorted(each.parent for each in SEEDS.rglob(MANIFEST))
    return [{each.name: each.read_bytes() for each in folder.iterdir() if each.name != "lock"} for folder in folders]


def changed(value: Any, rng: np.random.Generator) -> Any:
    """Change something in what JSON holds, in place where it can be."""
    if isinstance(value, (dict, list)) and value and rng.random() < 0.95:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = keys[rng.integers(len(keys))]
        chance = rng.random()
        if chance < 0.06:
            del value[key]
        elif chance < 0.1 and isinstance(value, list):
            value.append(copy.deepcopy(value[key]))
        elif chance < 0.13:
            other = keys[rng.integers(len(keys))]
            value[key], value[other] = value[other], value[key]
        else:
            value[key] = changed(value[key], rng)
        return value
    if type(value) is int and rng.random() < 0.6:
        return value + int(rng.integers(-3, 4)) * int(rng.choice([1, 1, 1, 8, 1 << 20]))
    return copy.deepcopy(ODD[rng.integers(len(ODD))])


def entries_of(said: Any) -> list[Any]:
    """Return what a manifest says of segments, wherever that still is what it was."""
    found: list[Any] = []
    pending = [said]
    while pending:
        each = pending.pop()
        if isinstance(each, dict):
            found += [each] if isinstance(each.get("file"), str) and "crc32" in each else []
            pending += each.values()
        elif isinstance(each, list):
            pending += each
    return found


def case_of(files: Files, rng: np.random.Generator) -> Files:
    """Make a case of another."""
    made = dict(files)
    try:
        said = json.loads(made[MANIFEST])["checkpoint"]
    except (ValueError, KeyError, TypeError):  # which was changed so far that it is none
        said = {}
    for _ in range(1 + int(rng.integers(4) == 0)):
        entries = entries_of(said)
        if entries and rng.random() < 0.4:
            entry = entries[rng.integers(len(entries))]
            data = bytearray(made.get(entry["file"], b""))
            begin = 8 + int.from_bytes(data[:8], "little") if rng.random() < 0.95 else 0  # of what is not the header
            for _ in range(int(rng.integers(1, 5)) if begin < len(data) else 0):
                at = int(rng.integers(begin, len(data)))
                data[at] = int(rng.choice([0, 1, 2, 127, 128, 255, data[at] ^ (1 << int(rng.integers(8)))]))
            if rng.random() < 0.02:
                data = data[: rng.integers(len(data) + 1)]
            made[entry["file"]] = bytes(data)
            if rng.random() < 0.95:
                starts = range(0, len(data), CHUNK)
                entry["crc32"] = "".join(f"{zlib.crc32(data[start : start + CHUNK]):08x}" for start in starts)
        elif isinstance(said, dict) and said.get("buffer") and rng.random() < 0.5:
            said["buffer"] = changed(said["buffer"], rng)
        else:
            said = changed(said, rng)
    made[MANIFEST] = manifest_of(json.dumps(said).encode())
    if rng.random() < 0.02:
        at = int(rng.integers(len(made[MANIFEST])))
        made[MANIFEST] = made[MANIFEST][:at] + bytes([int(rng.integers(256))]) + made[MANIFEST][at + 1 :]
    return made


def changed_text(body: bytes, spans: list[tuple[int, int]], rng: random.Random) -> bytes:
    """Change the text of a manifest, whose values lie in these places."""
    chosen = rng.random
    if not spans or chosen() < 0.03:
        at = int(chosen() * len(body))
        return body[:at] + bytes([int(chosen() * 256)]) + body[at + (chosen() < 0.5) :]
    begin, end = spans[int(chosen() * len(spans))]
    old, chance = body[begin:end], chosen()
    if body[end : end + 1] == b":":  # a key
        other = spans[int(chosen() * len(spans))]
        new = body[other[0] : other[1]]
        return body[:begin] + (new if new[:1] == b'"' else b'"x"') + body[end:]
    if chance < 0.35 and old.isdigit():
        new = b"%d" % (int(old) + int(chosen() * 7 - 3) * (1 if chosen() < 0.7 else 1 << int(chosen() * 62)))
    elif chance < 0.7:
        new = ODD_TEXTS[int(chosen() * len(ODD_TEXTS))]
    elif chance < 0.9:
        other = spans[int(chosen() * len(spans))]
        new = body[other[0] : other[1]]
    else:  # without it, and what comes before it
        begin, new = max(body.rfind(b",", 0, begin), body.rfind(b"{", 0, begin) + 1), b""
    return body[:begin] + new + body[end:]


class Texts:
    """Manifests that are changed in their text, which takes a few microseconds, and parsed: no file, and no buffer.

    Args:
        seed: Of the changes.
        bodies: The inner objects of manifests to begin with.

    Attributes:
        num_read: Manifests so far.
        ways: What came of them, how often each.
    """

    def __init__(self, seed: int, bodies: list[bytes]) -> None:
        self.num_read = 0
        self.ways: Counter[str] = Counter()
        self._rng = random.Random(seed)
        self._pool = [(body, spans_of(body)) for body in bodies]

    def read(self, count: int) -> None:
        """Read so many."""
        for _ in range(count):
            body, spans = self._pool[int(self._rng.random() * len(self._pool))]
            made = changed_text(body, spans, self._rng)
            data = manifest_of(made)
            try:
                way = parse(data)
            except BaseException:
                kept({MANIFEST: data}, self.num_read)
                raise
            self.num_read += 1
            self.ways[way] += 1
            if self.ways[way] == 1 and len(self._pool) < 2000:
                self._pool.append((made, spans_of(made)))

    @property
    def bodies(self) -> list[bytes]:
        """Those that are changed."""
        return [body for body, _ in self._pool]


_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?|true|false|null|\[[^][]*\]|\{[^}{]*\}')


def spans_of(body: bytes) -> list[tuple[int, int]]:
    """Return where values lie in a text of JSON."""
    return [found.span() for found in _TOKEN.finditer(body)]


def manifest_of(body: bytes) -> bytes:
    """Return the manifest with an inner object, under its checksum."""
    return b'{"crc32": "%08x", "checkpoint": ' % zlib.crc32(body) + body + b"}\n"


def parse(data: bytes) -> str:
    """Read a manifest, and say of each segment what it must be; return what came of it.

    Raises:
        Exception: Something else came of it than a refusal.
    """
    try:
        manifest = parsed_manifest(data, MANIFEST)
        for each in (manifest, *manifest.parts.values()):
            records, state = _forms(Described.of(each.buffer, MANIFEST))
            for form, entries in ((records, each.records), (state, each.state)):
                for entry in entries:
                    if len(form.header(entry)) > form.num_bytes(entry):
                        raise AssertionError(entry)
    except (ValueError, MemoryError) as error:
        return _way(error)
    return "whole"


def _way(error: Exception) -> str:
    return f"{type(error).__name__}: {re.sub(r'[0-9a-f]{8,}|[-0-9.,]+|(?<=got ).*', '', str(error))}"


def bodies_of(pool: list[Files]) -> list[bytes]:
    """Return the inner objects of manifests."""
    return [json.dumps(json.loads(files[MANIFEST])["checkpoint"]).encode() for files in pool]


def read(files: Files) -> str:
    """Read a case as `verify` does, and if that is right `load`, whose buffer is then used; return what came of it.

    Raises:
        Exception: Something else came of it than a refusal.
    """
    folder: Any = MemoryFolder(files)
    try:
        manifest = parsed_manifest(files[MANIFEST], MANIFEST)
        for each in (manifest, *manifest.parts.values()):
            check(folder, each, *_forms(Described.of(each.buffer, MANIFEST)))
        buffer: Any = fr.ReplayBuffer._loaded(folder, manifest, None, {"output": "numpy"}, None)
    except (ValueError, FileNotFoundError, MemoryError) as error:
        return _way(error)
    if len(buffer):
        for follow in [None] if buffer._lanes is None else [None, fr.Sequence(3), fr.NStep(2, 0.9)]:
            buffer.sample(4, follow=follow if follow is None or "reward" in buffer.schema else None)
        buffer[:]
    return "loaded"


def kept(files: Files, number: int) -> None:
    """Lay a case where it can be looked at."""
    where = Path(f"fuzz-{os.getpid()}-{number}")
    where.mkdir()
    for name, data in files.items():
        (where / Path(name).name).write_bytes(data)
    print(f"what this was read of lies in {where}", file=sys.stderr)


class Fuzzing:
    """Cases that are read, and the ways in which they were.

    Attributes:
        num_read: Cases so far.
        ways: What came of them, how often each.
    """

    def __init__(self, seed: int, pool: list[Files]) -> None:
        self.rng = np.random.default_rng(seed)
        self.pool = pool
        self.num_read = 0
        self.ways: Counter[str] = Counter()

    def read_for(self, seconds: float, most: int = sys.maxsize) -> None:
        """Read cases for so long."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.num_read < most:
            files = case_of(self.pool[self.rng.integers(len(self.pool))], self.rng)
            try:
                way = read(files)
            except BaseException:
                kept(files, self.num_read)
                raise
            self.num_read += 1
            self.ways[way] += 1
            if self.ways[way] == 1 and len(self.pool) < 500 and "or it is no manifest" not in way:
                self.pool.append(files)


def packed(files: Files) -> bytes:
    """Return the files of a case as one: how long each is by name, in a line, then all of them."""
    head = json.dumps({name: len(data) for name, data in files.items()}).encode()
    return b"\n".join([head, b"".join(files.values())])


def unpacked(data: bytes) -> Files:
    """Return the files of a case."""
    head, _, rest = data.partition(b"\n")
    files: Files = {}
    for name, length in json.loads(head).items():
        files[name], rest = rest[:length], rest[length:]
    return files


def corpus(kind: str) -> list[bytes]:
    """Return what was found to be read in ways of its own, cases or manifests, by everybody who looked and kept it."""
    with tarfile.open(CORPUS) as file:
        return [file.extractfile(each).read() for each in file if each.name.startswith(kind)]  # type: ignore[union-attr]


def lay_out(kind: str) -> Path:
    """Return the folder of what is changed, with what is kept in it."""
    folder = BUILD / kind
    folder.mkdir(parents=True, exist_ok=True)
    begin = bodies_of(seeds()) if kind == "manifests" else [packed(files) for files in seeds()]
    for data in [*begin, *corpus(kind)]:
        (folder / hashlib.sha1(data).hexdigest()).write_bytes(data)
    return folder


def guided(kind: str, *options: str) -> str:
    """Let libFuzzer read and change what lies in folders; return what it says.

    Raises:
        SystemExit: It found something, which it says, too.
    """
    command = [sys.executable, str(Path(__file__).with_name("fuzz_guided.py")), kind, *options]
    done = subprocess.run(command, check=False, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        sys.exit(done.stdout[-4000:])
    return done.stdout


def read_guided(kind: str, seconds: float) -> int:
    """Read for so long what libFuzzer chooses, keep what it finds to be worth it, and return how many were read."""
    folder, least = lay_out(kind), BUILD / f"{kind}-least"
    limits = ["-max_len=100000", "-timeout=60", "-rss_limit_mb=4096", f"-artifact_prefix={BUILD}/found-"]
    said = guided(kind, str(folder), f"-max_total_time={max(1, round(seconds))}", "-print_final_stats=1", *limits)
    shutil.rmtree(least, ignore_errors=True)
    least.mkdir()
    guided(kind, str(least), str(folder), "-merge=1", *limits)
    reached = re.findall(r"cov: (\d+)", said)[-1]
    print(f"{kind}: {reached} branches reached, by {len([*least.iterdir()])} that are kept")
    return int(re.findall(r"number_of_executed_units: (\d+)", said)[-1])


def keep_least() -> None:
    """Put the fewest that reach all that was reached in the place of the corpus."""
    with tarfile.open(CORPUS, "w:xz") as file:
        for path in sorted(each for kind in KINDS for each in (BUILD / f"{kind}-least").iterdir()):
            member = tarfile.TarInfo(f"{path.parent.name.removesuffix('-least')}/{path.name}")
            member.size = path.stat().st_size
            file.addfile(member, io.BytesIO(path.read_bytes()))


def read_alone(seconds: float) -> dict[str, int]:
    """Read cases and manifests for so long, where there is no libFuzzer; return how many."""
    seed = int.from_bytes(os.urandom(4), "little")
    fuzzing = Fuzzing(seed, [*seeds(), *map(unpacked, corpus("cases"))])
    texts = Texts(seed, [*bodies_of(seeds()), *corpus("manifests")])
    fuzzing.read_for(seconds / 2)
    end = time.monotonic() + seconds / 2
    while time.monotonic() < end:
        texts.read(1000)
    print(f"cases read in {len(fuzzing.ways)} ways, manifests in {len(texts.ways)}")
    return {"executions": fuzzing.num_read, "manifests": texts.num_read}


def main() -> None:
    """Read cases for $SECONDS, half of the time whole ones, and count them."""
    seconds = float(os.environ.get("SECONDS", "60"))
    if importlib.util.find_spec("atheris") is None:
        counts = read_alone(seconds)
    else:
        counts = {name: read_guided(kind, seconds / 2) for kind, name in KINDS.items()}
        keep_least()
    said = json.loads(EXECUTIONS.read_text())
    for name, num_read in counts.items():
        said[name] = said.get(name, 0) + num_read
    EXECUTIONS.write_text(json.dumps(said) + "\n")
    for name, num_read in counts.items():
        print(f"{num_read:,} {name} in {seconds:.0f} s, {said[name]:,} in all")


if __name__ == "__main__":
    main()
