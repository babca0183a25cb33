# SPDX-License-Identifier: MIT
"""Samplers with what surrounds their rows, made when they are first asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastreplay.buffer.follow import Follow
from fastreplay.support.latest import Latest

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastreplay.batch.delivery import Delivery
    from fastreplay.batch.form import Form
    from fastreplay.batch.ring_sampler import RingSampler
    from fastreplay.buffer.lanes import Lanes
    from fastreplay.schema import Schema

__all__ = ["Followers"]

_RULES, _DELIVERIES = 16, 4


class Followers:
    """What follows the rows of one sampler.

    Args:
        sampler: Draws the rows.
        schema: The fields of a transition.
        lanes: The ring's; None where it has none.

    Thread safety:
        Any thread may ask.
    """

    __slots__ = ("_by_rule", "_deliveries", "_lanes", "_last", "_sampler", "_schema")

    def __init__(self, sampler: RingSampler, schema: Schema, lanes: Lanes | None) -> None:
        self._sampler = sampler
        self._schema = schema
        self._lanes = lanes
        self._by_rule: Latest[Follow, RingSampler] = Latest(_RULES)
        self._deliveries: Latest[tuple[Any, ...], Delivery] = Latest(_DELIVERIES)
        self._last: tuple[Follow | None, RingSampler] = None, sampler  # to know it again takes a tenth of finding it

    def of(self, rule: Follow, new_delivery: Callable[[Form], Delivery]) -> RingSampler:
        """Return a sampler of the same draws whose minibatches follow the rule.

        Args:
            rule: What to give with each row.
            new_delivery: Makes a delivery of what is drawn.

        Raises:
            TypeError: It is no rule.
            ValueError: The buffer has no lanes, or not the fields; or the rule draws again what is drawn in epochs.
        """
        last, found = self._last
        if rule is last:
            return found
        if not isinstance(rule, Follow):
            raise TypeError(f"follow: expected NStep, Sequence, Window or None, got {rule!r}")
        made = self._by_rule.get(rule) or self._new(rule, new_delivery)
        self._last = rule, made
        return made

    def _new(self, rule: Follow, new_delivery: Callable[[Form], Delivery]) -> RingSampler:
        if self._lanes is None:
            raise ValueError(
                "follow: expected a buffer with lanes, one for each environment: it knows what comes after what"
            )
        if rule._redraws and self._sampler.first_epoch is not None:
            raise ValueError("incomplete: expected no 'redraw' in epochs, in which every transition has its turn once")
        form, native = rule._followed(self._schema, self._lanes, self._sampler.form)
        key = (form.schema, form.time_major, *form.parts, *form.beside.items())
        delivery = self._deliveries.get(key)
        if delivery is None:
            delivery = new_delivery(form)
            self._deliveries.put(key, delivery)
        made = self._sampler.following(native, delivery)
        self._by_rule.put(rule, made)
        return made
