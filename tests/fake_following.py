# SPDX-License-Identifier: MIT
"""What surrounds rows, as csrc/cuda makes it, ticket by ticket, for tests/fake_cuda.py."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastreplay import _core
from fastreplay.gpu import pieces
from fastreplay.support.bfloat16 import BFLOAT16, bfloat16

if TYPE_CHECKING:
    from collections.abc import Sequence

_MOST_GAP = 0xFFFF0000
_FIRST = 0
_ENDS = (0xFFFFFFFF, 0xFFFFFFFE)
_REDRAWS = 2**32
DTYPES = {source: name for name, source in _core.CONVERTED_FROM.items()}
_PIECE_WORDS = len(pieces.Piece._fields)
_LEAST_MOST = 64


def words(address: int, count: int) -> Any:
    return np.ctypeslib.as_array((ctypes.c_uint32 * count).from_address(address))


def is_gap(word: int) -> bool:
    return 0 < word <= _MOST_GAP


def source_of(piece: Sequence[int], records: int, offset: int) -> int:
    """Return where a piece lies, of struct fastreplay_cuda_piece, of the record so far from the first one."""
    within, _, _, _, place_offset, frame_alignment, *_ = piece
    if not frame_alignment:
        return records + offset + within
    place = ctypes.c_uint64.from_address(records + offset + place_offset).value
    return (records + place) % 2**64 + within


def given_bytes(piece: Sequence[int]) -> int:
    """Return the bytes that a piece has in the block."""
    number = DTYPES.get(piece[6] & 0xFF)
    return piece[3] if number is None else piece[3] // dtype_of(number).itemsize * 4


def dtype_of(name: str) -> Any:
    return bfloat16() if name == BFLOAT16 else np.dtype(name)


class Shifts:
    """From where the images of a call are cut: as core/batch/conversion.hpp draws it."""

    def __init__(self, generator: Any) -> None:
        self._key, self._call = generator[:2].copy(), int(generator[2])

    def numbers(self, piece: pieces.Piece, row: int) -> Any:
        """Return which numbers of its row, or its frame, a piece is made of."""
        # Rows count from 1 on, and NumPy counts before it draws.
        counter = np.array([row, self._call, piece.field, 2**32], np.uint64)
        words = np.random.Philox(key=self._key, counter=counter).random_raw(2).tolist()
        down, across = (int(word) * (2 * piece.shift + 1) // 2**64 - piece.shift for word in words)
        at = piece.first_number + np.arange(piece.num_bytes // piece.number_bytes)
        image, y, x = at // (piece.height * piece.width), at // piece.width % piece.height, at % piece.width
        y, x = np.clip(y + down, 0, piece.height - 1), np.clip(x + across, 0, piece.width - 1)
        return (image * piece.height + y) * piece.width + x


def give(piece: Sequence[int], target: int, source: int, shifts: Shifts, row: int) -> None:
    """Copy a piece, shift or convert it."""
    said = pieces.Piece(*piece)
    stored: Any = np.frombuffer(ctypes.string_at(source, said.num_bytes), np.uint8)
    if said.shift:
        places = shifts.numbers(said, row)
        whole = ctypes.string_at(source, (int(places.max()) + 1) * said.number_bytes)
        stored = np.frombuffer(whole, np.uint8).reshape(-1, said.number_bytes)[places].reshape(-1)
    if not said.converting:
        ctypes.memmove(target, stored.tobytes(), said.num_bytes)
        return
    with np.errstate(invalid="ignore"):
        stored = stored.view(dtype_of(DTYPES[piece[6] & 0xFF])).astype(np.float32)
    factor = np.array(piece[6] >> 16, np.uint32).view(np.float32)
    then = piece[6] >> 8 & 0xFF
    with np.errstate(all="ignore"):
        made = stored / factor if then == 1 else stored * factor if then else stored
    ctypes.memmove(target, made.tobytes(), made.nbytes)


def complete_links(linking: Any) -> None:
    links = words(linking.links, 2 * linking.capacity).reshape(-1, 2)
    for i in range(linking.count):
        gap = int(links[linking.first_slot + i, 0])
        if is_gap(gap) and gap + linking.count - i <= linking.capacity:
            links[(linking.first_slot + i - gap) % linking.capacity, 1] = gap
    if linking.num_changes:
        for slot, after in words(linking.changes, 2 * linking.num_changes).reshape(-1, 2).tolist():
            links[slot, 1] = after


class Trail(NamedTuple):
    """What there is around a ticket, in order."""

    tickets: list[int]
    at: int  # of the ticket itself
    begins: bool
    is_complete: bool


class UniformDraws:
    """Attempts of rows, each transition as likely as every other."""

    counted_by = 1

    def __init__(self, generator: Any, window: Window) -> None:
        self._generator = generator
        self._window = window

    def again(self, row: int, attempt: int) -> int | None:
        return self._window.first + (word_of(self._generator, row, attempt, 0) * self._window.size >> 64)

    def mass(self, _row: int, _attempt: int, _ticket: int) -> float:
        return 1.0


class TrajectoryDraws:
    """Attempts of rows, each trajectory as likely as every other, then each of its transitions."""

    def __init__(self, sampling: Any, generator: Any, first: int, size: int) -> None:
        self._generator, self._first, self._size = generator, first, size
        links = words(sampling.trajectories, 2 * sampling.capacity).reshape(-1, 2)
        link = {ticket: links[ticket % sampling.capacity].tolist() for ticket in range(first, first + size)}
        begun: dict[int, list[int]] = {}  # by the first ticket that is there; then the others
        of: dict[int, list[int]] = {}
        for ticket, (before, _) in link.items():
            if is_gap(before) and ticket - before in link:
                of[ticket] = of[ticket - before]
                of[ticket].append(ticket)
            else:
                begun[ticket] = of[ticket] = [ticket]
        self._trajectories = begun

    def found(self, row: int, first: int, is_right: Any) -> int | None:
        """Return what an attempt from `first` on draws that is right, at the end counted; None where nothing is."""
        for attempt in range(first, first + 2 * self._size + (first == 0)):
            if first or attempt:
                word = word_of(self._generator, row, attempt, 0)
            else:
                word = word_of(self._generator, row // 4, 0, 0, row % 4)
            tickets = self._trajectories.get(self._first + (word * self._size >> 64))
            if tickets is not None:
                ticket = tickets[word_of(self._generator, row, 2**64 - 1 - attempt, 0) * len(tickets) >> 64]
                if is_right(ticket):
                    return ticket
        attempt, total, found, number = first + 2 * self._size + (first == 0), 0.0, None, 0
        for tickets in self._trajectories.values():
            share = 1 / len(tickets)
            for ticket in filter(is_right, tickets):
                total += share
                fraction = (word_of(self._generator, row, attempt, 1 + number) >> 11) * 2.0**-53
                if found is None or fraction * total < share:
                    found = ticket
                number += 1
        return found


def word_of(generator: Any, row: int, attempt: int, purpose: int, number: int = 0) -> int:
    # Rows count from 1 on, and NumPy counts before it draws.
    counter = np.array([row, int(generator[2]), attempt, purpose], np.uint64)
    return int(np.random.Philox(key=generator[:2], counter=counter).random_raw(number + 1)[number])


class Window:
    """What a device has of a ring with lanes."""

    def __init__(self, sampling: Any, rule: Any, first: int, size: int) -> None:
        self.first, self.size, self.capacity = first, size, sampling.capacity
        self._rule = rule
        self._links = words(rule.links, 2 * self.capacity).reshape(-1, 2).copy()

    def _link(self, ticket: int) -> tuple[int, int]:
        before, after = self._links[ticket % self.capacity].tolist()
        return before, after

    def _has(self, ticket: int) -> bool:
        return self.first <= ticket < self.first + self.size

    def trail(self, ticket: int) -> Trail:
        later = [ticket]
        while len(later) <= self._rule.most_after:
            gap = self._link(later[-1])[1]
            if not is_gap(gap) or not self._has(later[-1] + gap) or self._link(later[-1] + gap)[0] != gap:
                break
            later.append(later[-1] + gap)
        earlier = [ticket]
        while len(earlier) <= self._rule.most_before:
            gap = self._link(earlier[-1])[0]
            if not is_gap(gap) or not self._has(earlier[-1] - gap):
                break
            earlier.append(earlier[-1] - gap)
        begins = self._link(earlier[-1])[0] == _FIRST
        is_whole = len(later) > self._rule.most_after or self._link(later[-1])[1] in _ENDS
        is_complete = is_whole and (len(earlier) > self._rule.most_before or begins)
        return Trail([*reversed(earlier), *later[1:]], len(earlier) - 1, begins, is_complete)

    def completed(self, tickets: list[int], generator: Any, draws: Any) -> list[int]:
        """Return what is drawn in place of tickets that are to be complete and are not; count it."""
        if not self._rule.is_redrawn:
            return tickets
        for row, ticket in enumerate(tickets):
            if self.trail(ticket).is_complete:
                continue
            generator[5] += np.uint64(1)
            found = self._complete(row, generator, draws)
            if found is None:
                generator[6] += np.uint64(1)
            else:
                tickets[row] = found
        return tickets

    def _complete(self, row: int, generator: Any, draws: Any) -> int | None:
        if isinstance(draws, TrajectoryDraws):
            return draws.found(row, _REDRAWS + 1, lambda ticket: self.trail(ticket).is_complete)
        most = max(self.size // (self._rule.most_before + self._rule.most_after + 1), _LEAST_MOST)
        for attempt in range(_REDRAWS + 1, _REDRAWS + most + 1):
            ticket = draws.again(row, attempt)
            if ticket is not None and self.trail(ticket).is_complete:
                return int(ticket)
        attempt, total, found, number = _REDRAWS + most + 1, 0.0, None, 0
        for ticket in range(self.first, self.first + self.size):
            mass = draws.mass(row, attempt, ticket) if self.trail(ticket).is_complete else 0.0
            if not mass:
                continue
            total += mass
            word = word_of(generator, row, attempt, draws.counted_by + number)
            if found is None or (word >> 11) * 2.0**-53 * total < mass:
                found = ticket
            number += 1
        return found

    def make(self, sampling: Any, around: tuple[Any, list[list[int]]], tickets: Sequence[int], shifts: Shifts) -> None:
        """Write every part of the rows of these tickets."""
        for row, ticket in enumerate(tickets):
            trail = self.trail(ticket)
            for piece in around[1]:
                Piece(sampling, self._rule, shifts, *piece).make(row, trail)


class Piece:
    """One row of struct fastreplay_cuda_made."""

    def __init__(self, sampling: Any, rule: Any, shifts: Shifts, *numbers: int) -> None:
        self._sampling, self._rule, self._shifts = sampling, rule, shifts
        self.piece, rest = numbers[:_PIECE_WORDS], numbers[_PIECE_WORDS:]
        self.making, self.first, self.count, self.stride = rest
        _, self.block, self.row_bytes, self.num_bytes, *_ = self.piece

    def source_of(self, ticket: int) -> int:
        offset = ticket % self._sampling.capacity * self._sampling.stride
        return source_of(self.piece, self._sampling.records, offset)

    def make(self, row: int, trail: Trail) -> None:
        if self.making >= 8:
            self._sum(row, trail)
            return
        places = [trail.at + self.first + k * self.stride for k in range(self.count)]
        if self.making == 1:
            places = [len(trail.tickets) - 1]
        elif self.making == 4:
            places = [next(place for place in places if 0 <= place < len(trail.tickets))]
        for k, place in enumerate(places):
            at = k * self._sampling.batch_size + row if self._rule.is_time_major else row * len(places) + k
            self._give(self._sampling.block + self.block + at * self.row_bytes, place, trail, row)

    def _give(self, target: int, place: int, trail: Trail, row: int) -> None:
        is_there = 0 <= place < len(trail.tickets)
        if self.making in (5, 6, 7):
            said = (is_there, is_there and place >= trail.at, trail.begins and place == 0)[self.making - 5]
            ctypes.memset(target, int(said), 1)
        elif self.making == 3 and not is_there:
            ctypes.memset(target, 0, given_bytes(self.piece))
        else:
            ticket = trail.tickets[min(max(place, 0), len(trail.tickets) - 1)]
            give(self.piece, target, self.source_of(ticket), self._shifts, row)

    def _sum(self, row: int, trail: Trail) -> None:
        tickets, kind = trail.tickets[trail.at :], ctypes.c_double if self.making in (9, 11) else ctypes.c_float
        stored = {0: None, 4: ctypes.c_float, 8: ctypes.c_double}[self._rule.discount_bytes]
        target = self._sampling.block + self.block + row * self.row_bytes
        for element in range(self.count):
            total, weight = 0.0, 1.0
            for ticket in tickets:
                number = self.source_of(ticket)
                if self.making < 10:
                    total += weight * kind.from_address(number + element * self.num_bytes).value
                weight *= self._rule.gamma
                if stored is not None:
                    record = number - self.piece[0]
                    weight *= stored.from_address(record + self._rule.discount_offset).value
            kind.from_address(target + element * self.num_bytes).value = total if self.making < 10 else weight
