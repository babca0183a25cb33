// SPDX-License-Identifier: MIT
// What help() says of the two inserts: their descriptors take texts of C.
#pragma once

namespace fastreplay {

inline constexpr char kAddDoc[] = R"(add($self, /, *values, **fields)
--

Insert one transition, given by field name or in schema order.

Overwrites the oldest transition when the buffer is full. Everything is checked and converted
before a slot is taken: an insert that raises leaves the buffer as it was.

Args:
    *values: The fields in schema order, each of the field's shape. Arrays, NumPy scalars,
        Python numbers and bools, nested lists, and torch CPU tensors. Or one mapping of all
        fields by name, as `buffer[i]` gives.
    **fields: The same by name. A dict or tuple may stand for nested names. Beside them, with priorities,
        `priority`: the transition's, None if it is not to be drawn yet; with lanes, `lane`: which
        environment's it is, where there are several.

Raises:
    TypeError: A field is unknown, missing or surplus, or a cast would lose its kind.
    ValueError: A shape differs from the field's, an integer does not fit, or an entry is masked.
    RuntimeError: Another thread is inserting into the lane.
    TimeoutError: Another thread's insert, a whole lap behind, was unfinished for the buffer's
        `timeout`. Nothing was inserted.

Thread safety:
    May be called from any thread. Lock-free, but for one wait: for an unfinished insert whose slot
    comes up again a whole lap later. Ctrl-C ends that wait.
)";

inline constexpr char kExtendDoc[] = R"(extend($self, /, *values, **fields)
--

Insert n transitions, whose number is the leading axis of every field.

Any n will do; of more than `capacity` the last `capacity` remain. Rows are inserted in order.

Another buffer of the same fields gives all that it holds at this moment, the oldest first, some hundred kilobytes
at a time: new transitions here, with new tickets and priorities. Between buffers with lanes its trajectories stay
what they are, with their ends and cuts, and nothing else continues them: into lanes of the same numbers, which no
other thread may insert into meanwhile. What its writers overwrite before it was copied is left out.

Args:
    *values: The fields in schema order, each (n, *shape). Or one mapping of all fields by name:
        a minibatch, another buffer's `[:]`, a dict. They may lie in this buffer's own memory. What a minibatch has
        beside fields is not inserted, but where there is a field of its name, for `discount` say. Or one buffer.
    **fields: The same by name. A dict or tuple may stand for nested names. Beside them, with priorities,
        `priority`: one for each row, or for all. With lanes, `lanes`: (n,) integers, the environment of
        each row, or one of all; without it, row i is of lane i, or all are of the only one. And `mask`:
        (n,) bools, False for rows that are left out. With another buffer, `lanes` alone: which of this
        buffer's each of its lanes goes into.

Raises:
    TypeError: A field is unknown, missing or surplus, or a cast would lose its kind.
    ValueError: A shape differs, the leading axes differ, an integer does not fit, or an entry is masked. The rows of
        a minibatch are what a follow made of several. The other buffer is this one, or has other fields or lanes.
    RuntimeError: Another thread is inserting into one of the lanes; no row was inserted.
    TimeoutError: As in `add`; the message says how many rows had been inserted by then.

Thread safety:
    May be called from any thread, as `add`. Rows are atomic, batches are not: another thread may sample the
    first rows of a batch before the last are in.
)";

}  // namespace fastreplay
