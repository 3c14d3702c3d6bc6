"""From batches of fingerprints, in the order of the store, to groups of near-duplicates and their case files."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable

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


class Analyst:
    """Follows every query; used from one thread."""

    def __init__(self, salt: bytes, capacity: int) -> None:
        self.index = Index(capacity, salt)
        self._groups: OrderedDict[int, Group] = OrderedDict()
        self._last_group = 0
        self._names = _Names()
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
            numbers = np.array([self._names.number(name) for name in names], np.uint16)
            records[column] = numbers[records[column]]
        places = self.index.places(records["coarse"], records["model"])
        for record, at in zip(records, places, strict=True):
            self._take(record, at)

    def cases(self) -> list[Case]:
        """Case files of the groups with a pattern that have grown since `written` was called."""
        return [group.case() for group in self._changed.values()]

    def written(self) -> None:
        """The case files were kept."""
        self._changed.clear()

    def _take(self, record: np.void, places: np.ndarray) -> None:
        index = self.index
        own = self._own_of(int(record["key"]))
        same = self._same(record, index.candidates(places))  # nearly always where an image has come before
        numbers, groups = ([], set[int]()) if same is not None else self._compared(record, places, own)
        if same is None:
            same = self._same(record, numbers)
        near = [same] if same is not None else self._near(record, numbers)
        number = same if same is not None else index.add(record, places)
        if number not in own:  # an image that is sent again and again is known by it, whatever came between
            own.append(number)
        if not near:
            return
        at = self._group_of(near[0])
        group = self._groups[at]
        if same is None:
            index.put(number, at)
            if near[0] not in group.parents:
                group.parents.append(near[0])
            for other in groups - {at}:
                # A group that began just now may have taken the place of one of them.
                if other in self._groups and any(index.group(found) == other for found in near):
                    at, group = self._merge(at, other)
        self._count(group, record, number, None if same is not None else near[0])
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
            strand = group.strand(self._strand_of(link, record))
            strand.add(number, link)
        if case is not None:
            group.adopt(case)
        if parent is None or group.different < EARLY or (group.pattern == "search" and group.different % _LATER):
            return
        self._judge(group, group.whole)
        if group.pattern != "search" and strand.images < group.different:
            self._judge(group, strand)

    def _same(self, record: np.void, numbers: list[int]) -> int | None:
        """The query of `numbers` that is the very image of a record, and of its model."""
        for number in numbers:
            known = self.index.record(number)
            if known["exact"] == record["exact"] and known["model"] == record["model"]:
                return number
        return None

    def _compared(self, record: np.void, places: np.ndarray, own: deque[int]) -> tuple[list[int], set[int]]:
        """What a query is compared with, and their groups: who shares a slot, its caller's last, the groups' newest."""
        index = self.index
        found = {*index.candidates(places), *own}
        groups = {group for number in found if (group := self._at(number)) in self._groups}
        for group in groups:
            found |= self._groups[group].remembered
        numbers = sorted((number for number in found if index.alive(number)), reverse=True)
        models = index.models(numbers) == record["model"]
        return [number for number, alike in zip(numbers, models.tolist(), strict=True) if alike], groups

    def _near(self, record: np.void, numbers: list[int]) -> list[int]:
        """The queries of `numbers` that a record is like, the nearest first."""
        if not numbers:
            return []
        differences = self.index.details(numbers) - record["detail"].astype(np.float32)
        distances = np.einsum("nd,nd->n", differences, differences)
        order = distances.argsort()
        reach = link_of(float(record["contrast"]))
        return [numbers[i] for i in order[: int((distances <= reach * reach).sum())].tolist()]

    def _at(self, number: int) -> int:
        """The number of a query's group, followed through merges; 0 for none."""
        return 0 if not self.index.alive(number) else self.index.group(number)

    def _group_of(self, number: int) -> int:
        """The group of a query, which begins with it if it had none."""
        found = self.index.group(number)
        if found in self._groups:
            self._groups.move_to_end(found)
            return found
        record = self.index.record(number)
        self._last_group += 1
        group = Group(model=str(self._names.name(int(record["model"]))))
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
        name = self._names.name
        return Seen(
            number=number,
            time=float(record["time"]),
            request=bytes(record["request"]).decode(),
            key=name(int(record["key"])),
            label=str(name(int(record["label"]))),
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
