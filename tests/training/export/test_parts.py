from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from gateway.core.engine import Engine
from gateway.core.manifest import PART_FILES, WEIGHTS, InputSpec, Part
from tests.training.exported import Exported
from tests.training.toy import SIDE
from training.export.parts import OUTPUTS, SHARED_BYTES, graph_specs, split_parts, write_parts
from training.export.stored import STORED
from training.util.module_modes import seeded


@pytest.fixture(scope="module")
def folder(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("parts")
    write_parts(split_parts(ir.from_proto(exported.model)), made)
    return made


@pytest.fixture(scope="module")
def engine(exported: Exported, folder: Path) -> Engine:
    specs = graph_specs(split_parts(ir.from_proto(exported.model)))
    return Engine(folder, specs, InputSpec(height=SIDE, width=SIDE), threads=1)


@pytest.mark.parametrize("part", OUTPUTS)
@pytest.mark.parametrize("masked", [False, True])
def test_parts_give_what_the_whole_gives(exported: Exported, engine: Engine, part: Part, masked: bool) -> None:
    pixels = torch.rand(5, 3, SIDE, SIDE, generator=seeded(0))
    mask = torch.zeros(5, SIDE, SIDE)
    if masked and part != "screen":
        mask[2, 3:9, 4:9] = 1
    whole = exported.run(pixels, mask)
    found = engine.run(pixels.numpy(), None if part == "screen" else mask.numpy(), part=part)
    assert set(found.arrays()) == set(OUTPUTS[part])
    for name in OUTPUTS[part]:
        np.testing.assert_allclose(getattr(found, name), whole[name].numpy(), atol=1e-5, rtol=1e-4, err_msg=name)
    names = exported.graph.score_names
    columns = [names.index(name) for name in exported.graph.screen_names]
    assert columns == [2, 3]
    np.testing.assert_array_equal(whole["screen_scores"], whole["scores"][:, columns])


def test_each_weight_is_stored_once(exported: Exported, folder: Path) -> None:
    places: dict[str, tuple[str, ...]] = {}
    for part, file in PART_FILES.items():
        model = onnx.load(folder / file, load_external_data=False)
        assert len(model.SerializeToString()) < 200_000
        for tensor in model.graph.initializer:
            if tensor.external_data:
                place = tuple(entry.value for entry in tensor.external_data)
                assert place[0] == WEIGHTS
                assert places.setdefault(tensor.name, place) == place, part
    large = [t for t in exported.model.graph.initializer if len(t.raw_data) >= SHARED_BYTES]
    assert {name.removesuffix(STORED) for name in places} <= {t.name for t in large}
    size = (folder / WEIGHTS).stat().st_size
    assert size <= sum(len(t.raw_data) + 64 for t in large)


def test_the_files_are_the_same_every_time(exported: Exported, folder: Path, tmp_path: Path) -> None:
    write_parts(split_parts(ir.from_proto(exported.model)), tmp_path)
    for path in folder.iterdir():
        assert path.read_bytes() == (tmp_path / path.name).read_bytes(), path.name


def test_a_screen_runs_no_views_and_a_verdict_no_gradient(exported: Exported) -> None:
    def kinds(part: Part) -> list[str]:
        return [node.op_type for node in split_parts(ir.from_proto(exported.model))[part].graph]

    convolutions = sum(isinstance(m, torch.nn.Conv2d) for m in exported.graph.network.modules())
    assert kinds("screen").count("Conv") == 2 * convolutions  # answering network and companion
    assert kinds("verdict").count("Conv") == 3 * convolutions  # and both views, in one batch
    assert "ConvTranspose" in kinds("full")
    assert not {"ConvTranspose", "If"} & set(kinds("screen"))


def test_one_name_for_two_tensors_is_refused(exported: Exported, tmp_path: Path) -> None:
    parts = split_parts(ir.from_proto(exported.model))
    tensors = ((v, v.const_value) for v in parts["full"].graph.initializers.values())
    value, tensor = next((v, t) for v, t in tensors if t is not None and t.nbytes >= SHARED_BYTES)
    value.const_value = ir.tensor(tensor.numpy() + 1, name=value.name)
    with pytest.raises(ValueError, match="differs between parts"):
        write_parts(parts, tmp_path)
