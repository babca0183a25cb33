# Written together with insert.pyx; `make typecheck` holds the two against each other.
from types import MethodDescriptorType
from typing import Final

from typing_extensions import disjoint_base

from fastreplay._core import Lanes, Priorities, Ring
from fastreplay.schema.schema import Schema

ADD: Final[MethodDescriptorType]
EXTEND: Final[MethodDescriptorType]

@disjoint_base
class Inserter:
    def __init__(
        self,
        ring: Ring,
        schema: Schema,
        timeout_s: float,
        priorities: Priorities | None = None,
        lanes: Lanes | None = None,
    ) -> None: ...
    def _refuse_second_init(self) -> None: ...
