from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gateway.core import engine as engine_module
from gateway.core.batch_sizes import worthwhile
from gateway.core.decode import to_pixels
from gateway.core.engine import Engine
from gateway.core.loading import load_bundle
from gateway.core.manifest import Part, expected_outputs
from tests.gateway.tiny import SIZE, clean_image, patched_image, speckled_image


@pytest.fixture
def engine(bundle_folder: Path) -> Engine:
    return Engine.open(load_bundle(bundle_folder), device="cpu", threads=1)


@pytest.fixture
def pixels() -> np.ndarray:
    return to_pixels(np.stack([clean_image(), patched_image(), speckled_image()]))


def test_parts_agree_and_have_what_the_manifest_tells(engine: Engine, bundle_folder: Path, pixels: np.ndarray) -> None:
    manifest = load_bundle(bundle_folder).manifest
    whole = engine.run(pixels)
    assert engine.parts == ("screen", "verdict", "full")
    for part in engine.parts:
        outputs = engine.run(pixels, part=part)
        given = outputs.arrays()
        assert set(given) == set(expected_outputs(manifest, part))
        for name, value in given.items():
            expected = whole.scores[:, :2] if name == "screen_scores" else getattr(whole, name)
            np.testing.assert_allclose(value, expected, rtol=1e-6)


def test_what_is_asked_for_wrongly_is_refused(engine: Engine, pixels: np.ndarray) -> None:
    mask = np.zeros((3, SIZE, SIZE), np.float32)
    with pytest.raises(ValueError, match="'screen' takes no mask"):
        engine.run(pixels, mask, part="screen")
    with pytest.raises(ValueError, match="the bundle has screen, verdict, full"):
        engine.run(pixels, part="half")  # type: ignore[call-overload]


@pytest.mark.parametrize("part", ["screen", "verdict", "full"])
def test_an_image_that_is_not_finite_fails_alone(engine: Engine, pixels: np.ndarray, part: Part) -> None:
    pixels[1, 0, 0, 0] = np.nan
    outputs = engine.run(pixels, part=part)
    assert outputs.finite.tolist() == [True, False, True]
    assert engine.run(pixels[::2], part=part).finite.all()


@pytest.mark.parametrize("n", [1, 3, 5, 40])
def test_io_binding_and_padding_change_nothing(bundle_folder: Path, engine: Engine, n: int) -> None:
    """The way that CUDA is fed, on the CPU: batches padded to a bucket, tensors handed over by IO binding."""
    manifest = load_bundle(bundle_folder).manifest
    bound = Engine(bundle_folder, manifest.graphs, manifest.input, threads=1, binding=True)
    bound.provider = "cuda"  # pads as on CUDA; the sessions are the CPU's
    pixels = np.random.default_rng(n).random((n, 3, SIZE, SIZE), np.float32)
    masks = (np.random.default_rng(1).random((n, SIZE, SIZE)) > 0.8).astype(np.float32)
    for part in engine.parts:
        mask = None if part == "screen" else masks
        plain, other = (e.run(pixels, mask, part=part) for e in (engine, bound))
        for name, value in vars(plain).items():
            if value is not None:
                np.testing.assert_allclose(getattr(other, name), value, rtol=1e-6)


def test_it_tells_how_it_runs(engine: Engine) -> None:
    assert (engine.provider, engine.precision, engine.threads) == ("cpu", "fp32", 1)
    assert engine.providers == ("CPUExecutionProvider",)
    assert engine.buckets == (1, 2, 4, 8, 16, 32)
    assert engine.warm_up() > 0


def test_batches_are_no_larger_than_pays(engine: Engine) -> None:
    assert worthwhile({1: 1.0, 2: 1.6, 4: 3.0, 8: 5.9}) == (1, 2, 4)  # as good as 8
    assert worthwhile({1: 1.0, 2: 1.6, 4: 2.9, 8: 4.0}) == (1, 2, 4, 8)
    assert worthwhile({1: 1.0, 2: 2.1, 4: 4.5, 8: 9.0}) == (1, 2, 4)  # up to 4 whatever is measured
    assert worthwhile({16: 2.0}) == (16,)
    engine.warm_up()
    assert set(engine.sizes("verdict")) <= set(engine.buckets)


def test_batches_that_run_at_once_have_threads_of_their_own(
    bundle_folder: Path, pixels: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second, and the next after both, is run by a session of half the threads, with the same answers.

    Large bundles have no such sessions.
    """
    engine = Engine.open(load_bundle(bundle_folder), device="cpu", threads=2)
    engine.warm_up()
    used, run, alone = [], Engine._run, engine.run(pixels, part="verdict").arrays()

    def seen(self: Engine, opened: object, *given: object) -> object:
        used.append(opened)
        if len(used) == 1:
            inner = engine.run(pixels, part="verdict").arrays()  # while the first one is at work
            for name, value in inner.items():
                np.testing.assert_array_equal(value, alone[name])
        return run(self, opened, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(Engine, "_run", seen)
    engine.run(pixels, part="verdict")
    assert used == [engine._parts["verdict"], engine._beside["verdict"]]
    for expected in (engine._beside, engine._parts):  # more are expected beside it, until one was alone
        engine.run(pixels, part="verdict")
        assert used[-1] is expected["verdict"]
    monkeypatch.setattr(engine_module, "_TWICE", 0)
    large = Engine.open(load_bundle(bundle_folder), device="cpu", threads=2)
    large.warm_up()
    assert not large._beside
