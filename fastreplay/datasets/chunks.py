# SPDX-License-Identifier: MIT
"""The rows of a dataset of HDF5, whose compressed chunks several threads unpack. Must not know layouts of files."""

from __future__ import annotations

import importlib.util
import itertools
import math
import zlib
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastreplay.datasets.table import reading

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from fastreplay.datasets.apart import Helpers

    Array = NDArray[Any]

__all__ = ["DatasetRows"]

_DEFLATE, _SHUFFLE = 1, 2  # as HDF5 numbers its filters
_BATCH_BYTES = 1 << 18  # of small chunks, that are handed over together
# Of the chunks that reach into the next block, kept unpacked for it; little enough for a dozen columns.
_MOST_KEPT_BYTES = 4 << 20
_MOST_ABREAST = 4096  # chunks of the same rows
_FEW = 4


class DatasetRows:
    """The rows of a dataset, read from the first to the last.

    Chunks that were compressed by deflate, shuffled or not, are unpacked here, and only where every check says that
    it went as it should: the checksum of what was compressed, and its length. Whatever else there is (other filters,
    types that NumPy has otherwise, chunks that were never written, damage), HDF5 itself reads, or refuses.

    Args:
        h5py: The library. It is called by the thread that calls this alone.
        where: What messages call the dataset.
        dataset: It.
        helpers: The threads that unpack.
    """

    def __init__(self, h5py: Any, where: str, dataset: Any, helpers: Helpers) -> None:
        self._h5py, self._where, self._dataset, self._helpers = h5py, where, dataset, helpers
        self._packing = _packing_of(h5py, dataset)
        self._at = 0
        self._kept: dict[tuple[int, ...], Array] = {}
        self._left: list[_Chunk] = []

    def start(self, out: Array) -> None:
        """Begin to fill an array (n, *shape) with the next rows; helpers, then `finish`, do the rest.

        Raises:
            OSError, ValueError: They cannot be read.
        """
        first, self._at = self._at, self._at + len(out)
        if self._packing is None:
            self._read((first, *[0] * (out.ndim - 1)), out)
        elif out.size:
            self._start(self._packing, first, out)

    def finish(self) -> None:
        """Let HDF5 read what could not be unpacked.

        Raises:
            OSError, ValueError: It cannot be read.
        """
        while self._left:
            chunk = self._left.pop()
            self._read((chunk.corner[0] + chunk.first, *chunk.tile.corner), chunk.out)

    def _start(self, packing: _Packing, first: int, out: Array) -> None:
        length, end = packing.shape[0], first + len(out)
        batch: list[tuple[_Chunk, _Packed]] = []
        for top in range(first - first % length, end, length):
            begin, stop = max(first, top), min(end, top + length)
            piece, is_kept = out[begin - first : stop - first], packing.may_keep and stop < top + length
            for tile in packing.tiles:
                corner = (top, *tile.corner)
                chunk = _Chunk(corner, begin - top, tile, piece[(slice(None), *tile.beside)], is_kept)
                if corner in self._kept:
                    chunk.lay(self._kept[corner] if is_kept else self._kept.pop(corner))
                    continue
                memory = self._helpers.memory(packing.most_bytes)
                try:
                    mask, data = self._dataset.id.read_direct_chunk(corner, out=memory)
                except (RuntimeError, OSError, ValueError):  # it was never written, or is damaged
                    self._left.append(chunk)
                    continue
                batch.append((chunk, _Packed(mask, data, memory)))
                if len(batch) * packing.num_bytes >= _BATCH_BYTES:
                    self._hand(packing, batch)
                    batch = []
        self._hand(packing, batch)

    def _hand(self, packing: _Packing, batch: list[tuple[_Chunk, _Packed]]) -> None:
        if batch:
            self._helpers.hand(len(batch) * packing.num_bytes, self._unpack, packing, batch)

    def _unpack(self, packing: _Packing, batch: list[tuple[_Chunk, _Packed]]) -> None:
        """Unpack chunks, in a helper's thread: no call of HDF5."""
        for chunk, packed in batch:
            array = packing.unpacked(chunk, packed)
            self._helpers.use_again(packed.memory)
            if array is None:
                self._left.append(chunk)
                continue
            if chunk.is_kept:
                self._kept[chunk.corner] = array
            chunk.lay(array)

    def _read(self, begin: tuple[int, ...], out: Array) -> None:
        """Fill an array by HDF5's own calls: selecting what is read through h5py's takes longer than reading."""
        with reading(f"{self._where}[{begin[0]}:{begin[0] + len(out)}]"):
            there = self._dataset.id.get_space()
            there.select_hyperslab(begin, out.shape)
            whole = out if out.flags.c_contiguous else np.empty(out.shape, out.dtype)
            self._dataset.id.read(self._h5py.h5s.create_simple(out.shape), there, whole)
        if whole is not out:
            out[...] = whole


class _Tile(NamedTuple):
    """What chunks of the same columns have in common.

    Attributes:
        corner: Where they begin, but for the row.
        beside: What of a row they are.
        taken: That, within the chunk.
        is_partial: Whether they reach beyond the row.
    """

    corner: tuple[int, ...]
    beside: tuple[slice, ...]
    taken: tuple[slice, ...]
    is_partial: bool


class _Chunk(NamedTuple):
    """A chunk, and what is wanted of it.

    Attributes:
        corner: Where it begins in the dataset.
        first: The first of its rows that is wanted.
        tile: What of the rows it has.
        out: Where that goes.
        is_kept: Whether it is kept for rows that are read later.
    """

    corner: tuple[int, ...]
    first: int
    tile: _Tile
    out: Array
    is_kept: bool

    def lay(self, array: Array) -> None:
        """Put what is wanted where it goes."""
        rows = array[(slice(self.first, self.first + len(self.out)), *self.tile.taken)]
        if rows.ndim > 1 and rows.shape[-1] <= _FEW:  # NumPy copies few numbers at a time slowly
            for i in range(rows.shape[-1]):
                self.out[..., i] = rows[..., i]
        else:
            self.out[...] = rows


class _Packed(NamedTuple):
    """A chunk as it stands in the file.

    Attributes:
        mask: Which filters were left out, as bits.
        data: Its bytes.
        memory: In which they lie.
    """

    mask: int
    data: memoryview
    memory: Array


class _Packing:
    """How the chunks of a dataset are packed.

    Args:
        dataset: Of which they are.
        is_shuffled: Whether the bytes of its numbers were sorted by their place before they were compressed.
    """

    def __init__(self, dataset: Any, is_shuffled: bool) -> None:
        self.shape: tuple[int, ...] = dataset.chunks
        self._num_rows, *beside = dataset.shape
        self._dtype: np.dtype[Any] = dataset.dtype
        self._is_shuffled = is_shuffled
        self.num_bytes = math.prod(self.shape) * self._dtype.itemsize
        # In the file, at most: HDF5's filter gives up beyond a thousandth more, and then the bytes stand as they are.
        self.most_bytes = self.num_bytes + self.num_bytes // 500 + 64
        self.tiles = list(_tiles(beside, self.shape[1:]))
        # One that is larger has to be in memory whole, however often it is unpacked.
        self.may_keep = len(self.tiles) == 1 or len(self.tiles) * self.num_bytes <= _MOST_KEPT_BYTES

    def unpacked(self, chunk: _Chunk, packed: _Packed) -> Array | None:
        """Return what a chunk holds; None where that is for HDF5 to say."""
        mask, data, _ = packed
        is_partial = chunk.tile.is_partial or chunk.corner[0] + self.shape[0] > self._num_rows
        if is_partial and len(data) == self.num_bytes:  # a file may say that such are not filtered, without a mask
            return None
        unpacked = bytes(data) if mask >> self._is_shuffled & 1 else _inflate(data, self.num_bytes)
        if unpacked is None or len(unpacked) != self.num_bytes:
            return None
        if self._is_shuffled and not mask & 1:
            return _sorted_back(unpacked, self._dtype.itemsize).view(self._dtype).reshape(self.shape)
        return np.frombuffer(unpacked, self._dtype).reshape(self.shape)


def _sorted_back(data: bytes | bytearray, item_bytes: int) -> Array:
    """Return numbers (n, item_bytes) of which the first bytes came first, then the second ones, ..."""
    parts = np.frombuffer(data, np.uint8).reshape(item_bytes, -1)
    rows = np.empty(parts.shape[::-1], np.uint8)
    for i, part in enumerate(parts):
        rows[:, i] = part
    return rows


def _tiles(extent: Sequence[int], shape: Sequence[int]) -> Iterator[_Tile]:
    """Yield how chunks of a shape lie beside each other in a row."""
    for corner in itertools.product(*(range(0, n, each) for n, each in zip(extent, shape, strict=True))):
        ends = [min(at + each, n) for at, each, n in zip(corner, shape, extent, strict=True)]
        lengths = [end - at for at, end in zip(corner, ends, strict=True)]
        beside = tuple(map(slice, corner, ends))
        yield _Tile(corner, beside, tuple(map(slice, lengths)), lengths != list(shape))


def _packing_of(h5py: Any, dataset: Any) -> _Packing | None:
    """Return how the chunks of a dataset are packed; None of one that HDF5 is to read."""
    properties, dtype = dataset.id.get_create_plist(), dataset.dtype
    if properties.get_layout() != h5py.h5d.CHUNKED:
        return None
    filters = [properties.get_filter(i) for i in range(properties.get_nfilters())]
    codes = [code for code, *_ in filters]
    if codes not in ([_DEFLATE], [_SHUFFLE, _DEFLATE]):
        return None
    # Shuffled by the bytes of its numbers, which lie in the file as NumPy has them.
    if codes[0] == _SHUFFLE and tuple(filters[0][2]) != (dtype.itemsize,):
        return None
    is_plain = dtype.kind in "biufc" and dataset.id.get_type().equal(h5py.h5t.py_create(dtype, logical=True))
    num_abreast = math.prod(-(-n // each) for n, each in zip(dataset.shape[1:], dataset.chunks[1:], strict=True))
    return _Packing(dataset, codes[0] == _SHUFFLE) if is_plain and num_abreast <= _MOST_ABREAST else None


def _inflate_by_zlib(packed: memoryview, num_bytes: int) -> bytes | None:
    """Return what was compressed; None of what is damaged, or longer."""
    stream = zlib.decompressobj()
    try:
        data = stream.decompress(packed, num_bytes + 1)
    except zlib.error:
        return None
    return data if stream.eof else None


def _inflate_by_libdeflate(packed: memoryview, num_bytes: int) -> bytearray | None:
    """Do the same in 0.4 to 0.65 of the time."""
    import deflate

    try:
        data: bytearray = deflate.zlib_decompress(packed, num_bytes)
    except deflate.DeflateError:
        return None
    return data


_inflate = _inflate_by_zlib if importlib.util.find_spec("deflate") is None else _inflate_by_libdeflate
