"""What a bundle is made of: the bundle recipe, read from YAML and checked."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from gateway.core.manifest import Guard, Name, Policy, Version
from training.bundling.calibrate import ALPHAS, GUARD, SCREENED_BY, Benign
from training.defence.localisers import LOCALISER, LOCALISERS
from training.defence.scores import SCORES, default_scores, screening
from training.errors import RecipeError
from training.loop.weights import is_file_of_weights, read_kept, weights_at
from training.recipes.evaluation import Evaluation
from training.recipes.training import Recipe, load_recipe, read_yaml, validate


class BundleRecipe(BaseModel):
    """What a bundle is made of; `standard` and `companion` are recipe files beside this one, or files of weights.

    A file of weights (`palisade weights`), here or in this package (`weights/...safetensors`), is taken as it is.

    A score that is not computed by default is if it is fused or guards. `localiser` finds the region of attack.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name
    version: Version
    description: str = ""
    standard: str
    companion: str
    fused: list[str] = Field(
        default_factory=lambda: list(default_scores(companion=True)),
        min_length=1,
        description="scores that Fisher's statistic combines",
    )
    guard: Guard | None = Field(GUARD, description="the score whose objection no other outweighs; null: none")
    screened_by: list[str] = Field(list(SCREENED_BY), description="scores by which the cascade screens; []: none")
    localiser: str = Field(LOCALISER, description="what finds the region of attack")
    policy: Policy = Policy()
    benign: Benign = Field(Benign(), description="images that it is calibrated on")
    kinds: bool = Field(False, description="tell unfamiliar images from attacked ones, as `palisade kinds` does")
    votes: bool = Field(False, description="calibrate masks that vote, as `palisade votes` does")
    pool: bool = Field(False, description="fit a pool of all networks, as `palisade pool` does")
    small_field: str | None = Field(
        None, description="file of weights of a network of small fields, as of `palisade small-field`; null: none"
    )
    samples: int = Field(4, ge=1, le=50, description="of each kind: clean, attacked, patched")
    evaluation: Evaluation = Evaluation()


def load_bundle_recipe(path: Path) -> BundleRecipe:
    """Read and validate; `RecipeError` names the key that is wrong."""
    recipe = validate(BundleRecipe, read_yaml(path), path)
    named = {
        "fused": (recipe.fused, SCORES),
        "screened_by": (recipe.screened_by, screening()),
        "guard": ([recipe.guard.score] if recipe.guard else [], SCORES),
    }
    for key, (names, known) in named.items():
        if unknown := set(names) - set(known):
            raise RecipeError(f"{path}: {key}: unknown scores {sorted(unknown)}; there are {', '.join(known)}")
        if len(set(names)) < len(names):
            raise RecipeError(f"{path}: {key}: a score is named twice in {', '.join(names)}")
    if recipe.localiser not in LOCALISERS:
        known_ones = ", ".join(LOCALISERS)
        raise RecipeError(f"{path}: localiser: there is no {recipe.localiser!r}; there are {known_ones}")
    for name in ("alpha", "gate_alpha"):
        if getattr(recipe.policy, name) not in ALPHAS:
            calibrated = ", ".join(f"{alpha:g}" for alpha in ALPHAS)
            raise RecipeError(f"{path}: policy.{name}: no cutoff is calibrated for it; there are {calibrated}")
    return recipe


def network_recipe(config: Path, name: str) -> Recipe:
    """The training recipe of the network that a bundle recipe, the file `config`, names: a file, or of the weights."""
    return read_kept(weights_at(name)).recipe if is_file_of_weights(name) else load_recipe(config.parent / name)
