# Written together with native_minibatch.pyx; `make typecheck` holds the two against each other.
from typing import Any

from typing_extensions import disjoint_base

from fastreplay import _core
from fastreplay.batch.beside import Beside
from fastreplay.batch.block import HostBlock
from fastreplay.batch.tensors import Generations
from fastreplay.schema.schema import Schema
from fastreplay.support.latest import Latest

@disjoint_base
class NativeMinibatch:
    _ticket: Any
    _beside: Beside
    def __init__(
        self,
        schema: Schema,
        values: tuple[Any, ...],
        block: Any,
        batch_size: int | None,
        ticket: Any = None,
        beside: Beside = ...,
    ) -> None: ...
    @property
    def _schema(self) -> Schema: ...
    @property
    def _values(self) -> tuple[Any, ...]: ...
    @property
    def _block(self) -> Any: ...
    @property
    def _batch_size(self) -> int | None: ...
    def _attribute(self, name: str) -> Any: ...

@disjoint_base
class NativePool:
    def __init__(self, by_size: Latest[int, Generations]) -> None: ...
    @property
    def _by_size(self) -> Latest[int, Generations]: ...
    def take(self, batch_size: int) -> HostBlock: ...
    def keep(self, block: HostBlock) -> None: ...

@disjoint_base
class NativeDelivery:
    def __init__(
        self,
        pool: NativePool,
        kind: type[NativeMinibatch],
        schema: Schema,
        in_numpy: bool,
        is_plain: bool,
        is_here: bool,
    ) -> None: ...
    def take(self, batch_size: int) -> HostBlock: ...
    def cancel(self, block: HostBlock) -> None: ...
    def give_ahead(self, block: HostBlock) -> Any: ...
    def give(self, block: HostBlock) -> Any: ...
    def draw(self, generator: Any, source: _core.Ring | _core.Follow, beta: float, batch_size: int) -> Any: ...
    def draw_into(
        self, out: Any, generator: Any, source: _core.Ring | _core.Follow, beta: float, batch_size: int
    ) -> Any: ...
