"""What a unit of evaluation declares: its name, its figures, its place in the card, and how it is measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

from pydantic import TypeAdapter, ValidationError

from gateway.core.loading import Bundle
from training.data.dataset import Dataset
from training.errors import TrainingError
from training.evaluate.harness.bench import Bench
from training.evaluate.harness.found import Found
from training.evaluate.harness.section import Section
from training.evaluate.harness.shown import Body
from training.recipes.evaluation import Evaluation

S = TypeVar("S")
Question = Literal["knows", "seen", "benign", "measured"]
QUESTIONS: dict[Question, str] = {
    "knows": "What does an attacker who knows reach?",
    "seen": "Which attacks are seen?",
    "benign": "What does it cost a benign user?",
    "measured": "What was measured how?",
}
"""The questions that a card answers, in the order of its page: the worst first."""

LEVELS = {
    "0": "no attacker: benign images, noise and corruptions",
    "1": "black box: transferred attacks and Square",
    "2": "white box on one network, unaware of the defence",
    "3": "patches, unaware of the defence",
    "4": "adaptive: white box on everything at once",
    "5": "queries over HTTP",
    "layers": "no attacker: what moves inside the networks, and whether the detector watches the right layers",
    "explanations": "no attacker: whether the maps show what the answer depends on",
}
"""Levels by name. The numbers are those of attackers in docs/threat-model.md."""


@dataclass(frozen=True)
class Place(Generic[S]):
    """A key of the card: its heading and explaining text, the question that it belongs to, its content and its page.

    `model` is what lies at `key` once every unit has put its part there, and `show` makes paragraphs and tables of it.
    The page has `text` above them. Places that are `leading` stand before the others of their question.
    """

    key: str
    title: str
    text: str
    question: Question
    model: type[S]
    show: Callable[[S], Body]
    leading: bool = False

    def body(self, content: object) -> Body:
        """The page's paragraphs and tables of the card's `content` at the key, if there is anything to show.

        `TrainingError` if the content is malformed.
        """
        try:
            shown = self.show(TypeAdapter(self.model).validate_python(content))
        except ValidationError as error:
            where = ".".join(map(str, (self.key, *error.errors()[0]["loc"])))
            raise TrainingError(f"the card has no such section: {where}: {error.errors()[0]['msg']}") from None
        return [self.text, *shown] if shown else []


@dataclass(frozen=True)
class Unit:
    """A measurement. `run` measures it and returns a `section` that the card keeps under the keys `path`.

    `figures` are titles of the headline figures that it finds, by name. `places` are the card's keys that this unit
    gives a heading to; those of other units may have parts of it, too. `count` names the setting of its number of
    images (None: all test images), `depends` the settings that its figures depend on. `seconds` by image are an
    estimate for one slow core. `verified` images are enough to compare its outcomes with a card's; None: all of them.
    `companion`: only for bundles that have one; `only`: for those of which it is true. `lacks` returns whether a
    finished result's section is without something that this run could add. `version` counts up when what is measured
    changes: results of an earlier one are not taken.
    """

    name: str
    level: str
    title: str
    run: Callable[[Bench], Found]
    section: type[Section]
    path: tuple[str, ...] = ()
    places: tuple[Place[Any], ...] = ()
    figures: Mapping[str, str] = field(default_factory=dict)
    count: str | None = None
    depends: tuple[str, ...] = ()
    seconds: float = 0.01
    verified: int | None = None
    companion: bool = False
    only: Callable[[Bundle], bool] = lambda _bundle: True
    lacks: Callable[[Bench, dict[str, Any]], bool] = lambda _bench, _section: False
    version: int = 1

    def images(self, settings: Evaluation, bundle: Bundle, data: Dataset) -> int:
        """How many test images it uses at most; 0 if it is not for this bundle."""
        if (self.companion and not bundle.manifest.companion) or not self.only(bundle):
            return 0
        asked = None if self.count is None else getattr(settings, self.count)
        return len(data.test) if asked is None else min(asked, len(data.test))

    def fits(self, content: object) -> bool:
        """Whether `content` is a section of this unit, as a finished result has it."""
        try:
            self.section.model_validate(content)
        except ValidationError:
            return False
        return True


def figures_of(units: Iterable[Unit]) -> dict[str, str]:
    """Titles of all figures by name."""
    return {name: title for unit in units for name, title in unit.figures.items()}


def places_of(units: Iterable[Unit]) -> list[Place[Any]]:
    """Every place once, in the order of the card's page: by question, then in the order of the units."""
    found = {place.key: place for unit in units for place in unit.places}
    order = list(QUESTIONS)
    return sorted(found.values(), key=lambda place: (order.index(place.question), not place.leading))
