# SPDX-License-Identifier: MIT
# cython: language_level=3, nonecheck=True, wraparound=False, auto_pickle=False, freethreading_compatible=True
"""What is done at every minibatch: a block is taken, filled and given, or given again, and its fields are asked for.

A call of Python's for each of these steps took longer than a minibatch of 32 rows does for the rest.
"""

cimport cython
from cpython.object cimport PyObject, PyObject_GenericGetAttr, PyTypeObject

from fastreplay.batch.tensors cimport FieldTensors, Generations, NativeBlock

from numpy import ndarray
from fastreplay.batch.beside import NOTHING
from fastreplay.batch.block import HostBlock


cdef extern from "Python.h":
    PyObject *PyDict_GetItemWithError(object mapping, object key) except? NULL  # borrowed
    PyObject *PyImport_GetModuleDict()  # borrowed
    PyTypeObject *Py_TYPE(object value)
    PyObject *_PyType_Lookup(PyTypeObject *kind, object name)


cdef class NativeMinibatch:
    """A minibatch's fields, as attributes: base of Minibatch.

    Args:
        schema: The fields.
        values: They themselves, (batch_size, *shape) each.
        block: The memory that they lie in; None for memory of their own.
        batch_size: Rows; None for a single transition.
        ticket: The rows' insert numbers (batch_size,); None where there are none, or the block is to be asked.
        beside: What the rows have that is no field.

    Thread safety:
        Reading is safe from any thread.
    """

    cdef readonly object _schema, _block, _batch_size
    cdef readonly tuple _values
    cdef object ticket, beside
    cdef dict places  # of the fields, by name

    def __init__(self, schema, tuple values not None, block, batch_size, ticket=None, beside=NOTHING):
        if self._values is not None:
            raise RuntimeError(f"{type(self).__name__}: __init__ was called before; make another")
        self._schema = schema
        self.places = schema._positions
        self._block = block
        self._batch_size = batch_size
        self.ticket = ticket
        self.beside = beside
        self._values = values
        tell_torch(type(self))

    @property
    def _ticket(self):
        """The tickets, if they were asked for or given."""
        with cython.critical_section(self):
            return self.ticket

    @_ticket.setter
    def _ticket(self, ticket):
        with cython.critical_section(self):
            self.ticket = ticket

    @property
    def _beside(self):
        """What the rows have that is no field."""
        with cython.critical_section(self):
            return self.beside

    @_beside.setter
    def _beside(self, beside):
        with cython.critical_section(self):
            self.beside = beside

    # What the class has comes first, as in every object, and what the object of a subclass has; then fields.
    def __getattribute__(self, name):
        cdef Py_ssize_t place
        if _PyType_Lookup(Py_TYPE(self), name) != NULL or Py_TYPE(self).tp_dictoffset != 0:
            try:
                return PyObject_GenericGetAttr(self, name)
            except AttributeError:  # of a property, to be put into words, or of a field
                pass
        place = self.place_of(name)
        return self._attribute(name) if place < 0 else self._values[place]

    # Of a field, -1 where there is none of this name.
    cdef Py_ssize_t place_of(self, name) except -2:
        cdef PyObject *found = NULL
        if self.places is not None:
            found = PyDict_GetItemWithError(self.places, name)
        if found == NULL:
            return -1
        if <Py_ssize_t><object>found >= len(self._values):
            raise IndexError("there are fewer values than fields")
        return <Py_ssize_t><object>found

    def _attribute(self, name):
        """Return what neither the class nor the schema has."""
        raise AttributeError(name)


cdef bint torch_knows = False
cdef tuple no_arguments = ()


# Minibatches are nodes of torch's trees, as soon as there is a torch. `sys.modules.get` would lock the modules where there
# is no GIL, and a child would wait forever for a lock that another thread had at the fork.
cdef inline int tell_torch(type kind) except -1:
    global torch_knows
    cdef PyObject *torch
    if not torch_knows:
        torch = PyDict_GetItemWithError(<object>PyImport_GetModuleDict(), "torch")
        if torch != NULL and torch != <PyObject *>None:
            torch_knows = True
            kind._tell_torch()
    return 0


cdef class NativePool:
    """Blocks of one layout on the host, by batch size: base of Pool, which makes what is not there yet.

    Args:
        by_size: A dict of Generations by batch size.

    Thread safety:
        Any thread may take.
    """

    cdef readonly object _by_size

    def __init__(self, by_size):
        if not isinstance(by_size, dict):
            raise TypeError("by_size: expected a dict")
        self._by_size = by_size

    def take(self, batch_size):
        """Return a block that nobody else has, with the tensors that it had if they are as they were made."""
        return taken_of(self.of(batch_size))

    cpdef keep(self, NativeBlock block):
        """Let a block with tensors be taken again once nobody has them."""
        cdef Generations blocks
        if not block.is_kept and block.tensors is not None:
            blocks = self.found(block.layout.batch_size)
            if blocks is not None and blocks.layout is block.layout:
                blocks.keep(block)

    cdef Generations of(self, batch_size):
        cdef Generations blocks = self.found(batch_size)
        return self._new(batch_size) if blocks is None else blocks

    # None where there are none of so many rows.
    cdef Generations found(self, batch_size):
        return (<dict>self._by_size).get(batch_size)


cdef NativeBlock taken_of(Generations blocks):
    cdef NativeBlock block = blocks.taken()
    return HostBlock(blocks.memory.take(), blocks.layout) if block is None else block


cdef class NativeDelivery:
    """What the host's delivery does at every minibatch: base of HostDelivery.

    Args:
        pool: Where blocks come from.
        kind: The class of minibatches.
        schema: Their fields.
        in_numpy: Whether they are arrays.
        is_plain: Whether the rows have nothing beside fields, and nobody asks which ring they are of.
        is_here: Whether they stay on the host.

    Thread safety:
        Any thread may do anything; one has a block.
    """

    cdef NativePool pool
    cdef type kind
    cdef object schema
    cdef dict places  # of the fields, by name
    cdef bint in_numpy, is_plain, is_here

    def __init__(self, NativePool pool not None, type kind not None, schema, bint in_numpy, bint is_plain, bint is_here):
        if not issubclass(kind, NativeMinibatch):
            raise TypeError(f"kind: expected a class of minibatches, got {kind!r}")
        self.pool = pool
        self.kind = kind
        self.schema = schema
        self.places = schema._positions
        self.in_numpy = in_numpy
        self.is_plain = is_plain
        self.is_here = is_here

    def take(self, batch_size):
        """Return a block that nobody uses, to be filled."""
        return taken_of(self.pool.of(batch_size))

    cpdef cancel(self, NativeBlock block):
        """Take a block back that was not filled, or that nobody wants."""
        self.pool.keep(block)

    def give_ahead(self, NativeBlock block not None):
        """Return a minibatch of the block: whoever has it sees what is filled in."""
        return self.minibatch(block, block.layout.batch_size)

    def give(self, NativeBlock block not None):
        """Return a filled block as a minibatch."""
        return self.given(block, block.layout.batch_size)

    def draw(self, generator, source, beta, batch_size):
        """Return a minibatch of rows that a generator draws; None where there is nothing to draw from."""
        cdef NativeBlock block = taken_of(self.pool.of(batch_size))
        try:
            num_rows = generator.sample(source, beta, block.native)
        except BaseException:
            self.cancel(block)
            raise
        if num_rows == 0:
            self.cancel(block)
            return None
        made = self.given(block, batch_size)
        return made if num_rows == batch_size else made._first_rows(num_rows)

    def draw_into(self, out, generator, source, beta, batch_size):
        """Fill a caller's minibatch, and return it; None where there is nothing to draw from, and nothing has changed.

        Raises:
            TypeError, ValueError: As `block_of`.
        """
        cdef NativeBlock block
        cdef FieldTensors tensors
        if not self.is_as_given(out, batch_size):
            return self._draw_into(out, generator, source, beta, batch_size)
        block = (<NativeMinibatch>out)._block
        tensors = block.tensors
        if generator.sample(source, beta, block.native) == 0:
            return None
        tensors.count_up_versions()
        return out

    cdef object given(self, NativeBlock block, batch_size):
        made = self.minibatch(block, batch_size)
        return made if self.is_here else self.make_ready(made)

    cdef object minibatch(self, NativeBlock block, batch_size):
        cdef NativeMinibatch made
        cdef tuple values
        if self.in_numpy:
            values = block.arrays()
        elif type(block.tensors) is FieldTensors:
            values = (<FieldTensors>block.tensors).hand_out()
        else:
            values = block.hand_out_tensors()
        self.pool.keep(block)
        if not self.is_plain:
            return self._minibatch(values, block)
        made = (<PyTypeObject *>self.kind).tp_new(self.kind, <PyObject *>no_arguments, NULL)
        made._schema = self.schema
        made.places = self.places
        made._block = block
        made._batch_size = batch_size
        made.beside = NOTHING
        made._values = values
        tell_torch(self.kind)
        return made

    # Whether a minibatch is sure to be one that was given here and nobody has changed since: of this form and size, and
    # its tensors, which are known by their bytes, as they were made.
    cdef bint is_as_given(self, out, batch_size) except -1:
        cdef NativeMinibatch minibatch
        cdef NativeBlock block
        cdef Generations blocks
        if type(out) is not self.kind or not self.is_plain or not self.is_here:
            return False
        minibatch = out
        if not isinstance(minibatch._block, NativeBlock) or minibatch.beside is not NOTHING:
            return False
        block = minibatch._block
        if type(block.tensors) is not FieldTensors or type(minibatch._values[0]) is ndarray:
            return False
        blocks = self.pool.found(batch_size)
        return (blocks is not None and block.layout is blocks.layout
                and (<FieldTensors>block.tensors).first_changed() < 0)

