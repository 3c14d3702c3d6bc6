"""From batches of fingerprints, in the order of the store, to groups of near-duplicates and their case files."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from gateway.campaigns.behaviour import EARLY, STRAND, Link, link_of
from gateway.campaigns.case import Case
from gateway.campaigns.fingerprint import COARSE, COARSE_UNIT
from gateway.campaigns.groups import Group, Seen, Strand
from gateway.campaigns.index import Index
from gateway.campaigns.records import Batch

MAX_GROUPS = 20_000
"""Groups that are followed at once; beyond it the one that was quiet for longest is forgotten."""
MAX_CALLERS = 10_000
_LATER = 8
"""A campaign's shape is looked at again with every eighth image; it stays a campaign."""
_OWN = 4
"""Newest images of the same caller that a query is always compared with."""


@dataclass(slots=True)
class _Asked:
    """One query's record, its slots in the index, and what of the record is read often."""

    record: np.void
    places: np.ndarray
    detail: np.ndarray
    exact: int
    model: int
    key: int
    contrast: float


class Analyst:
    """Follows every query; used from one thread."""

    def __init__(self, salt: bytes, capacity: int) -> None:
        self.index = Index(capacity, salt)
        self._groups: OrderedDict[int, Group] = OrderedDict()
        self._last_group = 0
        self._names = {column: _Names() for column in ("model", "key", "label")}
        self._own: OrderedDict[int, deque[int]] = OrderedDict()
        self._changed: dict[int, Group] = {}
        self._known: dict[str, Case] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of the index at its capacity."""
        return self.index.nbytes

    def restore(self, cases: Iterable[Case]) -> None:
        """Case files that the groups of batches still to come go on with, each from its `last_request`."""
        self._known = {case.last_request: case for case in cases}

    def take(self, batch: Batch) -> None:
        """Look at a batch of queries, the next in the order of the store."""
        records = batch.records.copy()
        for column, names in (("model", batch.models), ("key", batch.keys), ("label", batch.labels)):
            known = self._names[column]
            numbers = np.array([known.number(name) for name in names], np.uint16)
            records[column] = numbers[records[column]]
        places = self.index.places(records["coarse"], records["model"])
        columns = (records[name].tolist() for name in ("exact", "model", "key", "contrast"))
        for asked in map(_Asked, records, places, records["detail"].astype(np.float32), *columns):
            self._take(asked)

    def cases(self) -> list[Case]:
        """Case files of the groups with a pattern that have grown since `written` was called."""
        return [group.case() for group in self._changed.values()]

    def written(self) -> None:
        """The case files were kept."""
        self._changed.clear()

    def _take(self, asked: _Asked) -> None:
        index = self.index
        own = self._own_of(asked.key)
        candidates = index.candidates(asked.places)
        # Nearly always found where an image has come before.
        same = next((n for n in candidates if index.is_image(n, asked.exact, asked.model)), None)
        near, groups = ([same], set[int]()) if same is not None else self._near(asked, candidates, own)
        if same is None and near and index.is_image(near[0], asked.exact, asked.model):
            same = near[0]
        number = same if same is not None else index.add(asked.record, asked.places)
        if number not in own:  # an image that is sent again and again is known by it, whatever came between
            own.append(number)
        if not near:
            return
        at = self._group_of(near[0])
        group = self._groups[at]
        if same is None:
            index.put(number, at)
            group.remember_parent(near[0])
            for other in groups - {at}:
                # A group that began just now may have taken the place of one of them.
                if other in self._groups and any(index.group(found) == other for found in near):
                    at, group = self._merge(at, other)
        self._count(group, asked.record, number, None if same is not None else near[0])
        if group.pattern is not None:
            self._changed[at] = group

    def _count(self, group: Group, record: np.void, number: int, parent: int | None) -> None:
        """Take a query into its group, and judge that; `parent` is what it is most like, None for the same image."""
        seen = self._seen(record, number)
        case = self._known.pop(seen.request, None)
        if parent is None:
            group.add(seen, identical=True)
        else:
            link = _link(number, record, parent, self.index.record(parent))
            group.add(seen, link)
            strand = group.descend(self._strand_of(link, record), link)
        if case is not None:
            group.adopt(case)
        if parent is None or group.different < EARLY or (group.pattern == "search" and group.different % _LATER):
            return
        self._judge(group, group.whole)
        if group.pattern != "search" and strand.images < group.different:
            self._judge(group, strand)

    def _near(self, asked: _Asked, candidates: list[int], own: deque[int]) -> tuple[list[int], set[int]]:
        """The queries that an image is like, the nearest first, or the same image alone; groups it was compared with.

        It is compared with those that share a slot, its caller's last, and the newest of all their groups.
        """
        index, known = self.index, self._groups
        oldest, group_of = index.oldest, index.group
        found = {*candidates, *own}
        groups = {at for number in found if number >= oldest and (at := group_of(number)) in known}
        numbers = sorted(found.union(*(known[group].remembered for group in groups)), reverse=True)
        while numbers and numbers[-1] < oldest:
            numbers.pop()
        if not numbers:
            return [], groups
        records = index.records(numbers)
        other = records["model"] != asked.model
        equal = (records["exact"] == asked.exact) & ~other
        if equal.any():
            return [numbers[int(equal.argmax())]], groups
        differences = records["detail"].astype(np.float32) - asked.detail
        distances = np.einsum("nd,nd->n", differences, differences)
        distances[other] = np.inf
        reach = link_of(asked.contrast) ** 2
        order = distances.argsort()[: int((distances <= reach).sum())]
        return [numbers[i] for i in order.tolist()], groups

    def _group_of(self, number: int) -> int:
        """The group of a query, which begins with it if it had none."""
        found = self.index.group(number)
        if found in self._groups:
            self._groups.move_to_end(found)
            return found
        record = self.index.record(number)
        self._last_group += 1
        group = Group(model=str(self._names["model"].name(int(record["model"]))))
        group.add(self._seen(record, number))
        self._groups[self._last_group] = group
        self.index.put(number, self._last_group)
        if len(self._groups) > MAX_GROUPS:
            self._groups.popitem(last=False)
        return self._last_group

    def _merge(self, one: int, other: int) -> tuple[int, Group]:
        """Join two groups under the one that has a case file, or else has more images; those of the newest images."""
        a, b = self._groups[one], self._groups[other]
        if (a.pattern is not None and b.pattern is not None) or a is b:
            return one, a  # two case files stay two
        if (b.pattern is not None, b.different) > (a.pattern is not None, a.different):
            one, other, a, b = other, one, b, a
        a.join(b)
        for number in b.remembered:
            if self.index.alive(number):
                self.index.put(number, one)
        del self._groups[other]
        return one, a

    def _judge(self, group: Group, strand: Strand) -> None:
        window = [number for number in strand.window if self.index.alive(number)]
        if len(window) >= EARLY:
            index = self.index
            group.judge(strand, index.details(window), index.contrasts(window), index.margins(window))

    def _strand_of(self, link: Link, record: np.void) -> int:
        """The number of the strand of an image: its parent's after a small step, else one that begins with it."""
        strand = self.index.strand(link.parent)
        if not strand or link.length > STRAND * link_of(float(record["contrast"])):
            strand = link.number % self.index.capacity + 1
        self.index.put_strand(link.number, strand)
        return strand

    def _seen(self, record: np.void, number: int) -> Seen:
        names = self._names
        return Seen(
            number=number,
            time=float(record["time"]),
            request=bytes(record["request"]).decode(),
            key=names["key"].name(int(record["key"])),
            label=str(names["label"].name(int(record["label"]))),
            p_value=float(record["p_value"]),
            flagged=bool(record["flagged"]),
        )

    def _own_of(self, key: int) -> deque[int]:
        if key in self._own:
            self._own.move_to_end(key)
            return self._own[key]
        if len(self._own) >= MAX_CALLERS:
            self._own.popitem(last=False)
        own = self._own[key] = deque(maxlen=_OWN)
        return own


def _link(number: int, record: np.void, parent: int, of: np.void) -> Link:
    cells = (record["coarse"].astype(np.float32) - of["coarse"]) * np.float32(COARSE_UNIT / COARSE**0.5)
    length = float(np.linalg.norm(record["detail"].astype(np.float32) - of["detail"]))
    blocks = float(np.linalg.norm(cells)) / max(length, 1e-3)
    return Link(number, parent, bool(record["label"] != of["label"]), blocks, length)


class _Names:
    """Numbers for the names of models, of keys, or of labels, the same in all batches."""

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
