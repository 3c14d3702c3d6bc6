from __future__ import annotations

from pathlib import Path

import pytest
import yaml

import training
from training.errors import RecipeError
from training.recipes.training import Recipe, load_recipe, read_yaml, validate

CONFIGS = sorted((Path(training.__file__).parent / "configs").rglob("*.yaml"))
RECIPES = [path for path in CONFIGS if "stages" in (yaml.safe_load(path.read_text("utf-8")) or {})]
SMALL = {"name": "small", "data": {"source": "npz:x"}, "stages": [{"name": "a", "epochs": 2, "lr": 0.1}]}


def load(tmp_path: Path, content: object) -> Recipe:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(content), "utf-8")
    return load_recipe(path)


def test_there_are_configs() -> None:
    assert len(RECIPES) >= 2


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_every_config_loads(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.epochs == sum(stage.epochs for stage in recipe.stages) > 0
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe  # as a run folder keeps it


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_configs_that_select_have_a_teacher(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.teacher or not any(stage.terms.selective for stage in recipe.stages)


def test_defaults(tmp_path: Path) -> None:
    recipe = load(tmp_path, SMALL)
    assert recipe.epochs == 2
    assert recipe.stages[0].batchnorm == "train"
    assert recipe.stages[0].adversary is None


@pytest.mark.parametrize(
    ("where", "key"),
    [
        ((), "learning_rate"),
        (("data",), "sauce"),
        (("model",), "depth"),
        (("augmentation",), "blur"),
        (("stages", 0), "epoch"),
        (("stages", 0, "adversary"), "epsilon"),
        (("stages", 0, "terms"), "jsigr"),
        (("stages", 0, "terms", "jacobian"), "lambda"),
    ],
)
def test_unknown_keys_are_refused_by_name(tmp_path: Path, where: tuple, key: str) -> None:
    content = yaml.safe_load(yaml.safe_dump(SMALL))
    content |= {"model": {}, "augmentation": {}}
    content["stages"][0] |= {"batchnorm": "frozen", "adversary": {}, "terms": {"jacobian": {"weight": 1}}}
    load(tmp_path, content)
    inner = content
    for step in where:
        inner = inner[step]
    inner[key] = 1
    with pytest.raises(RecipeError) as caught:
        load(tmp_path, content)
    assert ".".join(map(str, [*where, key])) in str(caught.value)
    assert "recipe.yaml" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"name": "Upper Case"}, "name"),
        ({"name": "../up"}, "name"),
        ({"batch": 0}, "batch"),
        ({"ema": 1}, "ema"),
        ({"precision": "fp8"}, "precision"),
        ({"stages": []}, "stages"),
        ({"stages": [{"name": "a", "epochs": 0, "lr": 0.1}]}, "stages.0.epochs"),
        ({"stages": [{"name": "a", "epochs": 1, "lr": 0.1, "adversary": {"eps": 300}}]}, "stages.0.adversary.eps"),
        ({"data": {"source": "npz:x", "per_class": 2}}, "data.per_class"),
    ],
)
def test_values_out_of_range_are_refused_by_name(tmp_path: Path, change: dict, key: str) -> None:
    with pytest.raises(RecipeError, match=key):
        load(tmp_path, SMALL | change)


def test_every_wrong_key_is_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load(tmp_path, SMALL | {"batch": 0, "sneed": 1})
    assert "batch" in str(caught.value)
    assert "sneed" in str(caught.value)


def test_neuron_sensitivity_needs_pairs(tmp_path: Path) -> None:
    stage = {"name": "a", "epochs": 1, "lr": 0.1, "batchnorm": "frozen", "terms": {"sns": {"weight": 1}}}
    with pytest.raises(RecipeError, match="adversary"):
        load(tmp_path, SMALL | {"stages": [stage]})


@pytest.mark.parametrize("content", [None, [], "text", 3])
def test_files_that_hold_no_mapping(tmp_path: Path, content: object) -> None:
    with pytest.raises(RecipeError, match="recipe"):
        load(tmp_path, content)


def test_missing_and_malformed_files(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no such recipe"):
        read_yaml(tmp_path / "absent.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1", "utf-8")
    with pytest.raises(RecipeError, match=r"bad\.yaml: not YAML"):
        read_yaml(tmp_path / "bad.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match=r"bytes\.yaml: not YAML"):
        read_yaml(tmp_path / "bytes.yaml")


def test_yaml_cannot_make_objects(tmp_path: Path) -> None:
    (tmp_path / "object.yaml").write_text("name: !!python/object/apply:os.getcwd []", "utf-8")
    with pytest.raises(RecipeError, match="not YAML"):
        read_yaml(tmp_path / "object.yaml")


def test_a_recipe_is_frozen() -> None:
    recipe = validate(Recipe, SMALL, Path("r"))
    with pytest.raises(ValueError, match="frozen"):
        recipe.batch = 3  # type: ignore[misc]
