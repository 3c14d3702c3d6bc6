"""One group of near-duplicate queries: counts, the newest different images, and what they look like."""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np

from gateway.campaigns.behaviour import (
    FEW_FLIPS,
    WINDOW,
    Link,
    Pattern,
    Provenance,
    Resembles,
    Shape,
    looks,
    moved,
    provenance_of,
    resembles,
    shape_of,
)
from gateway.campaigns.case import MAX_KEYS, MAX_LABELS, MAX_STEPS, MAX_TOOK_PART, Case, Step
from gateway.ids import new_id

CONFIRM = 4
"""Further different images for which a group must go on to look like a search before it is a campaign."""
RETRIES = 3
STUCK = 20
"""Repetitions of an image from which its sender is stuck; fewer, within RETRY_SECONDS, are retries."""
RETRY_SECONDS = 120.0
PARENTS = 8
"""Images that others were found to be most like, the newest, which a query is compared with beside the window."""
MEANS = 6
"""Means of full windows that are remembered, to see whether the images move."""
STRANDS = 4
"""Strands of a group that are followed, those that grew last."""
NOBODY = "(none)"
OTHERS = "(others)"
_STEPS_BY_LABEL = 12


@dataclass(frozen=True)
class Seen:
    """One query as a group sees it; `time` in seconds since the epoch."""

    number: int
    time: float
    request: str
    key: str | None
    label: str
    p_value: float
    flagged: bool


@dataclass
class Strand:
    """The newest different images of a group, or of a part of it whose images descend from one another in small steps.

    `means` are those of full windows, `streak` how often in a row the images have looked like a search.
    """

    window: deque[int] = field(default_factory=lambda: deque(maxlen=WINDOW))
    links: deque[Link] = field(default_factory=lambda: deque(maxlen=WINDOW))
    means: deque[np.ndarray] = field(default_factory=lambda: deque(maxlen=MEANS))
    images: int = 0
    streak: int = 0

    def add(self, number: int, link: Link | None) -> None:
        """Take in a different image, linked to one before it unless it is the first."""
        self.window.append(number)
        self.images += 1
        if link is not None:
            self.links.append(link)

    def look(
        self, details: np.ndarray, contrasts: np.ndarray, margins: np.ndarray
    ) -> tuple[Pattern | None, Shape, Provenance]:
        """What the images of the window look like: details (n, DETAIL), contrasts (n,) and margins (n,) in order."""
        shape, links = shape_of(details, contrasts), provenance_of(self.links, margins)
        found = looks(shape, links, moved(details, self.means[0]) if self.means else 0.0)
        if self.images % WINDOW == 0:
            self.means.append(details.mean(0))
        if found is not None:
            self.streak = self.streak + 1 if found == "search" else 0
        return found, shape, links

    def join(self, other: Strand) -> None:
        """Take in the images of another."""
        self.window = deque(sorted({*self.window, *other.window}), maxlen=WINDOW)
        self.links = deque(sorted([*self.links, *other.links], key=lambda link: link.number), maxlen=WINDOW)
        self.images += other.images


@dataclass
class Group:
    """Queries whose images are near-duplicates of an earlier one in the group."""

    model: str
    first: float = 0.0
    last: float = 0.0
    queries: int = 0
    different: int = 0
    repeats: int = 0
    flagged: int = 0
    label_flips: int = 0
    lowest_p: float = 2.0
    keys: Counter[str] = field(default_factory=Counter)
    took_part: Counter[str] = field(default_factory=Counter)
    senders: deque[tuple[int, str]] = field(default_factory=lambda: deque(maxlen=WINDOW))
    labels: Counter[str] = field(default_factory=Counter)
    whole: Strand = field(default_factory=Strand)
    strands: OrderedDict[int, Strand] = field(default_factory=OrderedDict)
    """Its parts by number. Where a search is hidden among a film's frames, it is one of them, and the film another."""
    parents: deque[int] = field(default_factory=lambda: deque(maxlen=PARENTS))
    path: list[Step] = field(default_factory=list)
    id: str | None = None
    pattern: Pattern | None = None
    kind: Resembles | None = None
    shape: Shape | None = None
    known_after: int | None = None
    last_request: str = ""
    _remembered: set[int] | None = None

    def join(self, other: Group) -> None:
        """Take in a smaller group, whose images turned out to be alike; the path and the pattern stay this one's."""
        self.first, self.last = min(self.first, other.first), max(self.last, other.last)
        self.queries += other.queries
        self.different += other.different
        self.repeats += other.repeats
        self.flagged += other.flagged
        self.label_flips += other.label_flips
        self.lowest_p = min(self.lowest_p, other.lowest_p)
        for name, n in other.keys.items():
            _count(self.keys, name, MAX_KEYS, n)
        for name, n in other.labels.items():
            _count(self.labels, name, MAX_LABELS, n)
        if self.pattern == "search":
            for _, name in other.senders:
                _count(self.took_part, name, MAX_TOOK_PART)
        self.senders = deque(sorted([*self.senders, *other.senders]), maxlen=WINDOW)
        self.whole.join(other.whole)
        self._remembered = None
        for number, strand in other.strands.items():
            self._keep(number, strand)

    def add(self, seen: Seen, link: Link | None = None, *, identical: bool = False) -> None:
        """Count a query; `identical` to an image that the group has, or else linked to one, unless it is the first."""
        if not self.queries:
            self.first = seen.time
        self.last, self.last_request = max(self.last, seen.time), seen.request
        self.queries += 1
        self.flagged += seen.flagged
        sender = NOBODY if seen.key is None else seen.key
        _count(self.keys, sender, MAX_KEYS)
        _count(self.labels, seen.label, MAX_LABELS)
        self._follow(seen, flip=link is not None and link.flip)
        if identical:
            self.repeats += 1
            self._name_repeats()
            return
        self._remembered = None
        self.different += 1
        self.whole.add(seen.number, link)
        self.senders.append((seen.number, sender))
        if self.pattern == "search":
            _count(self.took_part, sender, MAX_TOOK_PART)
        if link is not None:
            self.label_flips += link.flip

    def descend(self, strand: int, link: Link) -> Strand:
        """Put an image that was added in a strand; a new one takes the place of the one that grew longest ago."""
        found = self.strands.pop(strand, None) or Strand()
        found.add(link.number, link)
        self._keep(strand, found)
        return found

    def remember_parent(self, number: int) -> None:
        """Compare queries with this image, too, since another was found to be most like it."""
        if number not in self.parents:
            self.parents.append(number)
            self._remembered = None

    def _keep(self, number: int, strand: Strand) -> None:
        self._remembered = None
        self.strands[number] = strand
        if len(self.strands) > STRANDS:
            self.strands.popitem(last=False)

    @property
    def remembered(self) -> set[int]:
        """The images that a query is compared with."""
        if self._remembered is None:
            windows = (strand.window for strand in self.strands.values())
            self._remembered = {*self.whole.window, *self.parents}.union(*windows)
        return self._remembered

    def judge(self, strand: Strand, details: np.ndarray, contrasts: np.ndarray, margins: np.ndarray) -> None:
        """Take the images of the window of `whole`, or of one of the strands, into account; a search stays one.

        `details` (n, DETAIL), `contrasts` (n,) and `margins` (n,) in [0, 1] are of that window, in order. What is no
        search is named by the whole alone.
        """
        found, shape, links = strand.look(details, contrasts, margins)
        if strand is self.whole:
            self.shape = shape
        if found == "search":
            if strand.streak > CONFIRM and self.pattern != "search":
                self._name("search")
                self.shape = shape
                self.took_part = Counter(name for _, name in self.senders)
                self.kind = resembles(shape, links, self._flip_share)
            elif self.pattern == "search" and self._flip_share >= FEW_FLIPS:
                self.kind = "decision_based"
        elif found is not None and strand is self.whole:
            self.senders.clear()  # of images that were explained
            if self.pattern != "search":
                self._name(found)

    def adopt(self, case: Case) -> None:
        """Go on where the case file of this group ends, which another process wrote."""
        self.id, self.pattern, self.kind, self.known_after = case.id, case.pattern, case.resembles, case.known_after
        self.first, self.last = case.first_seen.timestamp(), case.last_seen.timestamp()
        self.queries, self.different, self.flagged = case.queries, case.different, case.flagged
        self.label_flips, self.lowest_p = case.label_flips, case.lowest_p_value
        self.keys, self.labels, self.path = Counter(case.keys), Counter(case.labels), list(case.path)
        self.took_part = Counter(case.keys if case.took_part is None else case.took_part)

    def case(self) -> Case:
        """The case file; `ValueError` for a group that looks like nothing yet."""
        if self.pattern is None or self.id is None:
            raise ValueError("the group has no pattern")
        return Case(
            id=self.id,
            pattern=self.pattern,
            resembles=self.kind if self.pattern == "search" else None,
            model=self.model,
            first_seen=_utc(self.first),
            last_seen=_utc(self.last),
            queries=self.queries,
            different=self.different,
            flagged=self.flagged,
            label_flips=self.label_flips,
            lowest_p_value=min(self.lowest_p, 1.0),
            keys=dict(self.keys),
            took_part=dict(self.took_part) if self.pattern == "search" else None,
            labels=dict(self.labels),
            dimension=None if self.shape is None else self.shape.dimension,
            step=None if self.shape is None else self.shape.step,
            known_after=self.known_after,
            path=list(self.path),
            last_request=self.last_request,
        )

    @property
    def _flip_share(self) -> float:
        return self.label_flips / max(self.different - 1, 1)

    def _name(self, pattern: Pattern) -> None:
        if self.pattern != pattern:
            self.known_after = self.queries
        self.id = self.id or new_id()
        self.pattern = pattern

    def _name_repeats(self) -> None:
        if self.pattern in ("search", "video", "still_camera"):
            return
        if self.repeats >= STUCK:
            self._name("stuck_camera")
        elif self.repeats >= RETRIES and self.last - self.first <= RETRY_SECONDS:
            self._name("retries")

    def _follow(self, seen: Seen, *, flip: bool) -> None:
        """Keep the query as a step of the path, if it tells more than those before it."""
        lower = seen.p_value < self.lowest_p
        self.lowest_p = min(self.lowest_p, seen.p_value)
        flips = sum(a.label != b.label for a, b in zip(self.path, self.path[1:], strict=False))
        if not (self.queries == 1 or lower or (flip and flips < _STEPS_BY_LABEL)):
            return
        self.path.append(
            Step(
                number=self.queries,
                request=seen.request,
                time=_utc(seen.time),
                label=seen.label,
                p_value=seen.p_value,
                flagged=seen.flagged,
            )
        )
        if len(self.path) > MAX_STEPS:
            del self.path[len(self.path) // 2]  # the beginning and the end tell most


def _count(counts: Counter[str], name: str, most: int, n: int = 1) -> None:
    counts[name if name in counts or len(counts) < most else OTHERS] += n


def _utc(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
