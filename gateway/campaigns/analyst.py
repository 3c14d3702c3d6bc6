"""From batches of fingerprints, in the order of the store, to groups of near-duplicates and their case files."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable

import numpy as np

from gateway.campaigns.behaviour import LINK, WINDOW, shape_of
from gateway.campaigns.case import Case
from gateway.campaigns.groups import Group, Seen
from gateway.campaigns.index import Index
from gateway.campaigns.records import Batch

MAX_GROUPS = 20_000
"""Groups that are followed at once; beyond it the one that was quiet for longest is forgotten."""
MAX_CALLERS = 10_000
_OWN = 4
"""Newest queries of the same caller that a query is always compared with."""


class Analyst:
    """Follows every query; used from one thread."""

    def __init__(self, salt: bytes, capacity: int) -> None:
        self._index = Index(capacity, salt)
        self._groups: OrderedDict[int, Group] = OrderedDict()
        self._last_group = 0
        self._names = _Names()
        self._own: OrderedDict[int, deque[int]] = OrderedDict()
        self._changed: dict[int, Group] = {}
        self._known: dict[str, Case] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of the index at its capacity."""
        return self._index.nbytes

    def restore(self, cases: Iterable[Case]) -> None:
        """Case files that the groups of batches still to come go on with, each from its `last_request`."""
        self._known = {case.last_request: case for case in cases}

    def take(self, batch: Batch) -> None:
        """Look at a batch of queries, the next in the order of the store."""
        records = batch.records.copy()
        for column, names in (("model", batch.models), ("key", batch.keys), ("label", batch.labels)):
            numbers = np.array([self._names.number(name) for name in names], np.uint16)
            records[column] = numbers[records[column]]
        places = self._index.places(records["coarse"], records["model"])
        for record, at in zip(records, places, strict=True):
            self._take(record, at)

    def changed(self) -> list[Case]:
        """Case files of the groups with a pattern that have grown since the last call."""
        found = [group.case() for group in self._changed.values()]
        self._changed.clear()
        return found

    def _take(self, record: np.void, places: np.ndarray) -> None:
        index, names = self._index, self._names
        key = int(record["key"])
        own = self._own_of(key)
        numbers = [
            number
            for number in {*index.candidates(places), *own}
            if index.alive(number) and index.record(number)["model"] == record["model"]
        ]
        same = next((number for number in numbers if index.record(number)["exact"] == record["exact"]), None)
        near = same if same is not None else self._nearest(record, numbers)
        number = same if same is not None else index.add(record, places)
        if same is None:
            own.append(number)
        if near is None:
            return
        group = self._group_of(near)
        request = bytes(record["request"]).decode()
        group.add(
            _seen(record, number, names),
            identical=same is not None,
            flip=same is None and bool(record["label"] != index.record(near)["label"]),
        )
        index.put(number, self._last_used)
        case = self._known.pop(request, None)
        if case is not None:
            group.adopt(case)
        if same is None and group.different >= WINDOW:
            self._judge(group)
        if group.pattern is not None:
            self._changed[self._last_used] = group

    def _nearest(self, record: np.void, numbers: list[int]) -> int | None:
        """The query of `numbers` most like a record, if it is alike at all."""
        if not numbers:
            return None
        differences = self._index.details(numbers) - record["detail"].astype(np.float32)
        distances = np.einsum("nd,nd->n", differences, differences)
        best = int(distances.argmin())
        return numbers[best] if distances[best] <= LINK * LINK else None

    def _group_of(self, number: int) -> Group:
        """The group of a query, which begins with it if it had none."""
        found = self._index.group(number)
        if found in self._groups:
            self._groups.move_to_end(found)
            self._last_used = found
            return self._groups[found]
        record = self._index.record(number)
        self._last_group += 1
        group = Group(model=str(self._names.name(int(record["model"]))))
        group.add(_seen(record, number, self._names), identical=False, flip=False)
        self._groups[self._last_group] = group
        self._index.put(number, self._last_group)
        self._last_used = self._last_group
        if len(self._groups) > MAX_GROUPS:
            self._groups.popitem(last=False)
        return group

    def _judge(self, group: Group) -> None:
        window = [number for number in group.window if self._index.alive(number)]
        if len(window) == WINDOW:
            group.judge(shape_of(self._index.details(window), self._index.contrasts(window)))

    def _own_of(self, key: int) -> deque[int]:
        if key in self._own:
            self._own.move_to_end(key)
            return self._own[key]
        if len(self._own) >= MAX_CALLERS:
            self._own.popitem(last=False)
        own = self._own[key] = deque(maxlen=_OWN)
        return own


class _Names:
    """Numbers for the names of models, keys and labels, the same in all batches."""

    def __init__(self) -> None:
        self._numbers: dict[str | None, int] = {}
        self._names: list[str | None] = []

    def number(self, name: str | None) -> int:
        number = self._numbers.setdefault(name, len(self._names))
        if number == len(self._names):
            self._names.append(name)
        return number

    def name(self, number: int) -> str | None:
        return self._names[number]


def _seen(record: np.void, number: int, names: _Names) -> Seen:
    return Seen(
        number=number,
        time=float(record["time"]),
        request=bytes(record["request"]).decode(),
        key=names.name(int(record["key"])),
        label=str(names.name(int(record["label"]))),
        p_value=float(record["p_value"]),
        flagged=bool(record["flagged"]),
    )
