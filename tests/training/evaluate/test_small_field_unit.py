"""The unit of certificates by the network of small fields, on a tiny bundle."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gateway.core.loading import Bundle, load_bundle
from gateway.core.small_field import Windows
from tests.training.evaluate.conftest import TINY
from tests.training.small_fields import write_small_field
from training.bundling.small_field import with_small_field
from training.data.dataset import Dataset
from training.evaluate.harness.bench import Bench
from training.evaluate.harness.store import Store
from training.evaluate.measurements.small_field import UNIT, SmallFieldProofs, one_wrong_label, small_field
from training.evaluate.units import UNITS


def test_the_unit_counts_what_is_served_and_proved(bundle: Bundle, data: Dataset, tmp_path: Path) -> None:
    weights = write_small_field(tmp_path / "fields.safetensors", data)
    made = with_small_field(bundle.path, tmp_path / "bundle", weights)
    settings = TINY.model_copy(update={"small_field": 12})
    bench = Bench(load_bundle(made.path), data, settings, Store(tmp_path / "work"))
    assert UNITS["small_field"].images(settings, made, data) == 12
    assert UNITS["small_field"].images(settings, bundle, data) == 0
    found = small_field(bench)
    section = found.section
    assert isinstance(section, SmallFieldProofs)
    assert section.n == 12
    for each in section.patches:
        assert each.proved <= each.agreed <= section.accuracy + 1e-9
        assert each.double_masking_errs <= each.masked_errs
    assert section.smaller.patch <= section.default.patch <= section.larger.patch
    assert found.outcomes["small_field_proved"].mean() == section.default.proved
    assert UNIT.fits(section.to_json())
    assert UNIT.places[0].body(section.to_json())


def test_a_wrong_label_counts_only_where_every_second_window_leaves_it() -> None:
    windows = Windows(np.eye(3, dtype=np.float32), np.zeros((3, 6), np.float32))
    only_first = np.array([[9.0, 0.0, 0.0], [0.0, 1.0, 1.0]], np.float32)
    assert one_wrong_label(only_first, windows, 0) == 1
    spread = np.array([[9.0, 0.5, 0.0], [0.0, 1.0, 0.0]], np.float32)
    assert one_wrong_label(spread, windows, 0) == 0
