"""The examples of CONTRIBUTING.md, followed literally in a copy of the tree."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
STEP = re.compile(
    r'^<!-- (?:file: (?P<file>\S+)|add to (?P<place>\S+) below "(?P<anchor>[^\n]+)") -->\n```\w+\n(?P<text>.*?)^```$',
    re.MULTILINE | re.DOTALL,
)
SECTIONS = dict(
    re.findall(
        r"^## (Add [^\n]+)\n(.*?)(?=^## |\Z)", (ROOT / "CONTRIBUTING.md").read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
)
# What stands in the copy once the section was followed: printed by Python there.
SEEN = {
    "Add an endpoint": (
        "from gateway.app import create_api; from gateway.settings import Settings\n"
        "print('/v1/models/{name}/labels' in create_api(Settings(audit=False)).openapi()['paths'])"
    ),
    "Add a command": (
        "import subprocess, sys\n"
        "from gateway.cli.plugins import Plugin, load\n"
        "import gateway.cli.plugins as plugins; from training.commands import COMMANDS\n"
        "plugins.plugins = lambda: COMMANDS\n"
        "print('by split' in load('count').help)"
    ),
    "Add a detector score": (
        "import torch\n"
        "from training.defence.constants import Constants\n"
        "from training.defence.graph import DefenceGraph\n"
        "from training.defence.scores import SCORES\n"
        "from training.models import ModelSpec, build_model\n"
        "network = build_model(ModelSpec(width=4), classes=3, mean=[0.0] * 3, std=[1.0] * 3)\n"
        "count = sum(network.tap_channels.values())\n"
        "fitted = {'whiten': torch.eye(16), 'class_means': torch.zeros(3, 16), 'mean_norm': torch.tensor(1.0)}\n"
        "defence = DefenceGraph(network, None, Constants(torch.zeros(count), torch.ones(count), fitted))\n"
        "out = defence(torch.rand(2, 3, 16, 16), torch.zeros(2, 16, 16))\n"
        "print(list(SCORES)[-1] == defence.score_names[-1] == 'feature_norm' and out.scores.shape == (2, 4))"
    ),
    "Add a localiser": (
        "import torch\n"
        "from training.defence.localisers import localiser_named\n"
        "x = torch.zeros(1, 3, 32, 32); x[..., 4:9, 20:25] = 1\n"
        "mask, score = localiser_named('brightest').locate(x)\n"
        "print(torch.equal(mask, x[:, 0]) and score.shape == (1,))"
    ),
    "Add a unit or a figure to the card": (
        "from training.evaluate.units import UNITS, chosen, figures, known_figures\n"
        "from training.evaluate.harness.unit import places_of\n"
        "from training.recipes.evaluation import Bound\n"
        "known_figures([Bound(figure='dark', kind='at_most', bound=0.1)])\n"
        "places = {place.key: place for place in places_of(UNITS.values())}\n"
        "shown = places['dark'].body({'n': 8, 'dark': 0.25})[1]\n"
        "from training.evaluate.references import REFERENCES\n"
        "named = set(REFERENCES) == set(UNITS)\n"
        "print(named and 'dark' in chosen(['0']) and figures()['dark'] == 'dark test images' and '25.0 %' in shown)"
    ),
    "Add an attack": (
        "from training.evaluate.units import UNITS, figures\n"
        "from training.evaluate.references import REFERENCES\n"
        "named = set(REFERENCES) == set(UNITS) and UNITS['uniform_8'].level == '1'\n"
        "print(named and 'uniform noise' in figures()['detected_uniform_8_0.05'])"
    ),
    "Add a loss": (
        "from training.losses.settings import Terms\n"
        "from training.losses.term import Term\n"
        "print(list(Terms.model_validate({'quiet': {'weight': 1, 'free': 0.5}}).of(Term)) == ['quiet'])"
    ),
}


def follow(section: str, tree: Path) -> None:
    """Do every step of a section in `tree`."""
    steps = list(STEP.finditer(section))
    assert steps
    for step in steps:
        if step["file"]:
            (tree / step["file"]).write_text(step["text"], "utf-8")
            continue
        place = tree / step["place"]
        lines = place.read_text("utf-8").splitlines(keepends=True)
        at = [number for number, line in enumerate(lines) if line.startswith(step["anchor"])]
        assert len(at) == 1, f"{step['place']}: {step['anchor']!r} stands there {len(at)} times"
        place.write_text("".join([*lines[: at[0] + 1], step["text"], *lines[at[0] + 1 :]]), "utf-8")


def test_every_section_is_followed() -> None:
    assert set(SECTIONS) == set(SEEN)


@pytest.mark.parametrize("title", SEEN)
def test_a_section_followed_literally(title: str, tmp_path: Path) -> None:
    for package in ("gateway", "training"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    follow(SECTIONS[title], tmp_path)
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "PALISADE_STATE_DIR": str(tmp_path / "state")}
    done = subprocess.run(
        [sys.executable, "-c", SEEN[title]], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines()[-1:] == ["True"], done.stderr
