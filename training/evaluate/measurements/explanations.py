"""How good the maps are (`training.analysis.explain`)."""

from __future__ import annotations

from importlib.util import find_spec

from pydantic import Field

from training.analysis.explain import explanation_report
from training.evaluate.harness.bench import Bench
from training.evaluate.harness.found import Found
from training.evaluate.harness.section import Interval, Section
from training.evaluate.harness.shown import Body, Table
from training.evaluate.harness.unit import Place, Unit
from training.util.module_modes import frozen


class Mean(Section):
    """A mean over images with its interval; by how much it differs from a random map's, where that is measured."""

    mean: float
    interval: Interval
    less_random: Interval = None


class Areas(Section):
    """Areas under the probability of the label while the most important pixels go, or come back."""

    deletion: Mean
    insertion: Mean


class Pointing(Section):
    """Of `images` that a patch was put on, those `fooled`: how the map of the wrong label lies on the patch."""

    side: int
    images: int
    fooled: int
    area: float | None = None
    energy: dict[str, Mean] = Field(default_factory=dict)
    points: dict[str, Mean] = Field(default_factory=dict)
    covered_by_region_of_attack: Mean | None = None


class Centre(Section):
    area: float
    energy: dict[str, Mean]


class Alike(Section):
    """How like itself a map stays under noise."""

    rank_correlation: Mean
    top_overlap: Mean


class Stability(Section):
    """Uniform noise of `noise` / 255 on `images`, of which `same_label` keep their label; a row for each map."""

    model_config = Section.model_config | {"extra": "allow"}
    __pydantic_extra__: dict[str, Alike] = Field(init=False)

    noise: float
    images: int
    same_label: int

    @property
    def rows(self) -> dict[str, Alike]:
        return self.__pydantic_extra__


class Reset(Section):
    """Mean rank correlation with the trained network's map once weights are drawn anew down to a layer."""

    reset_down_to: str
    rank_correlation: float


class Randomised(Section):
    """A list of `Reset` from the head down, for each map."""

    model_config = Section.model_config | {"extra": "allow"}
    __pydantic_extra__: dict[str, list[Reset]] = Field(init=False)

    n: int

    @property
    def rows(self) -> dict[str, list[Reset]]:
        return self.__pydantic_extra__


class Explanations(Section):
    n: int
    seed: int
    steps: int
    integrated_gradients_steps: int | None
    faithfulness: dict[str, dict[str, Areas]]
    patch: Pointing
    centre: Centre
    stability: Stability
    randomised_weights: Randomised


def explanations(bench: Bench) -> Found:
    """Deletion, insertion, pointing, stability and randomised weights; captum's maps beside them where it is there."""
    test = bench.first(bench.settings.explained)
    with frozen(bench.defence):
        report = explanation_report(
            bench.defence,
            bench.pixels(test.x),
            bench.targets(test.y),
            test.group,
            patched=len(test),
            seed=bench.settings.seed,
            references=find_spec("captum") is not None,
            progress=bench.progress,
        )
    return Found(Explanations.model_validate(report))


def _show(found: Explanations) -> Body:
    rows = []
    for name, areas in found.faithfulness["blur"].items():
        reset, stable = found.randomised_weights.rows.get(name), found.stability.rows.get(name)
        rows.append(
            (
                name,
                f"{areas.deletion.mean:.3f}",
                f"{areas.insertion.mean:.3f}",
                _mean(found.patch.energy.get(name)),
                _mean(found.patch.points.get(name)),
                _mean(stable.rank_correlation if stable else None),
                f"{reset[-1].rank_correlation:.2f}" if reset else "-",
            )
        )
    head = (
        "map",
        "deletion (low is good)",
        "insertion (high is good)",
        "share on the patch",
        "points at the patch",
        "same under noise",
        "same with random weights (low is good)",
    )
    return [f"n = {found.n:,}.", Table(head, rows)]


def _mean(found: Mean | None) -> str:
    return "-" if found is None else f"{found.mean:.2f}"


UNIT = Unit(
    "explanations",
    "explanations",
    "quality of explanations",
    explanations,
    Explanations,
    ("explanations",),
    (
        Place(
            "explanations",
            "Explanations",
            "Benign images: areas under the probability of the label while the most important pixels are blurred, or "
            "come back. Patched images that fool: whether the map of the wrong label lies on the patch. Rank "
            "correlation of maps under noise of 2/255, and with every layer's weights drawn anew.",
            "measured",
            Explanations,
            _show,
        ),
    ),
    count="explained",
    seconds=1.0,
)
