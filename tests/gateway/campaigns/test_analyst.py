"""What groups of queries are called: searches, and everything that is none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from gateway.campaigns import analyst as analysts
from gateway.campaigns.analyst import Analyst
from gateway.campaigns.behaviour import Provenance, Shape, looks
from gateway.campaigns.case import MAX_KEYS, MAX_STEPS
from gateway.campaigns.store import SUSPECT_QUERIES
from tests.gateway.campaigns.sequences import (
    SALT,
    ask,
    base,
    eight_bit,
    estimates,
    film,
    noisy,
    pan,
    squares,
    zoom,
)

CAPACITY = 4096
Images = Callable[[int, int], np.ndarray]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("keys", [("alice",), tuple(f"key-{i}" for i in range(10))])
@pytest.mark.parametrize(("search", "within"), [(estimates, 120), (squares, 50)])
def test_a_search_is_a_campaign(search: Images, within: int, keys: tuple[str, ...], seed: int) -> None:
    (case,) = ask(Analyst(SALT, CAPACITY), search(seed, 120), keys=keys)
    assert (case.pattern, case.resembles, case.model) == ("search", "score_based", "signs")
    assert case.known_after is not None
    assert case.known_after <= within
    assert set(case.keys) == set(keys)
    assert case.queries == 120
    assert case.lowest_p_value == pytest.approx(1 / 121, rel=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_a_search_between_the_frames_of_a_film_is_a_campaign(seed: int) -> None:
    frames, queries = film(seed, 4 * 60), squares(seed, 60)
    mixed = np.concatenate(
        [np.concatenate([query[None], frames[4 * i : 4 * i + 4]]) for i, query in enumerate(queries)]
    )
    (case,) = ask(Analyst(SALT, CAPACITY), mixed)
    assert (case.pattern, case.resembles) == ("search", "score_based")
    assert case.known_after is not None
    assert case.known_after <= 250
    (alone,) = ask(Analyst(SALT, CAPACITY), frames)
    assert alone.pattern == "video"


def test_label_changes_are_a_search_for_the_boundary() -> None:
    around = np.concatenate([eight_bit([base(0)]), noisy(0, 59, sigma=2.0)])
    (case,) = ask(Analyst(SALT, CAPACITY), around, labels=("stop", "stop", "yield", "stop"), margin=0.1)
    assert (case.pattern, case.resembles) == ("search", "decision_based")
    assert case.label_flips > 5
    assert set(case.labels) == {"stop", "yield"}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("motion", [pan, zoom])
def test_a_camera_that_moves_is_a_video(motion: Images, seed: int) -> None:
    cases = ask(Analyst(SALT, CAPACITY), motion(seed, 60))
    assert {case.pattern for case in cases} == {"video"}


@pytest.mark.parametrize("seed", range(4))
def test_a_camera_that_stands_still(seed: int) -> None:
    (case,) = ask(Analyst(SALT, CAPACITY), noisy(seed, 300))
    assert case.pattern == "still_camera"


def test_a_film_of_what_the_network_is_not_sure_of_is_none() -> None:
    (case,) = ask(Analyst(SALT, CAPACITY), pan(0, 60), labels=("stop", "stop", "yield"), margin=0.05)
    assert case.pattern == "video"


def test_a_walk_along_a_boundary_takes_small_steps() -> None:
    """Frames that follow each other and differ a lot, of a sign that gets several labels, are a film."""
    links = Provenance(flips=0.48, parents=0.7, small=0.96, tiny=0.62, hub=0.09, chain=0.64, blocks=0.67)
    shape = Shape(dimension=4.0, wide=3.2, stretch=1.3, step=15.4, contrast=0.29, images=24)
    assert looks(shape, links, 0.0) != "search"
    assert looks(replace(shape, step=4.0), links, 0.0) == "search"
    assert looks(shape, replace(links, chain=0.2), 0.0) == "search"


def test_a_camera_that_stands_still_before_what_the_network_is_not_sure_of() -> None:
    (case,) = ask(Analyst(SALT, CAPACITY), noisy(0, 100), margin=0.05)
    assert case.pattern == "still_camera"


def test_a_search_on_an_image_of_little_contrast_is_a_campaign() -> None:
    flat = np.clip(np.rint(128 + (squares(0, 60).astype(float) - base(0)) + (base(0) - 128) / 8), 0, 255)
    (case,) = ask(Analyst(SALT, CAPACITY), flat.astype(np.uint8))
    assert (case.pattern, case.resembles) == ("search", "score_based")


def test_a_stuck_camera() -> None:
    (case,) = ask(Analyst(SALT, CAPACITY), eight_bit([base(0)] * 2000))
    assert (case.pattern, case.queries, case.different) == ("stuck_camera", 2000, 1)


def test_retries() -> None:
    (case,) = ask(Analyst(SALT, CAPACITY), eight_bit([base(0)] * 5), seconds=2.0)
    assert (case.pattern, case.queries) == ("retries", 5)
    assert not ask(Analyst(SALT, CAPACITY), eight_bit([base(0)] * 5), seconds=3600.0)


def test_unlike_images_are_no_group() -> None:
    assert not ask(Analyst(SALT, CAPACITY), eight_bit([base(i) for i in range(60)]))


def test_a_search_among_other_traffic_is_found() -> None:
    rng = np.random.default_rng(0)
    others = eight_bit([base(1000 + i) for i in range(100)])
    images = np.concatenate([others, squares(0, 60)])
    order = rng.permutation(len(images))
    mixed = images[np.argsort(np.argsort(order))]
    cases = [case for case in ask(Analyst(SALT, CAPACITY), mixed, keys=("a", "b", "c")) if case.pattern == "search"]
    assert len(cases) == 1
    assert cases[0].queries >= 55


def test_a_case_goes_on_in_another_process() -> None:
    images = squares(0, 120)
    first, second = Analyst(SALT, CAPACITY), Analyst(SALT, CAPACITY)
    (before,) = ask(first, images[:60])
    second.restore([before])
    ask(second, images[:60])
    second.written()
    (after,) = ask(second, images[60:], start=60.0, name="later")
    assert (after.id, after.queries, after.first_seen) == (before.id, 120, before.first_seen)
    assert after.took_part is not None
    assert after.took_part["alice"] >= 100


def test_who_sent_the_image_that_is_attacked_took_no_part() -> None:
    """As the sample that a bundle ships: everybody sends it, again and again, and somebody searches around it."""
    analyst, everybody = Analyst(SALT, CAPACITY), tuple(f"key-{i}" for i in range(100))
    images = squares(0, 60)
    ask(analyst, np.repeat(images[:1], 400, axis=0), keys=everybody, name="before")
    ask(analyst, images[1:], keys=("mallory",), start=400.0)
    (case,) = ask(analyst, np.repeat(images[:1], 40, axis=0), keys=everybody, start=460.0, name="after")
    assert (case.pattern, case.took_part) == ("search", {"key-0": 1, "mallory": 59})
    assert "mallory" not in case.keys  # after 64 others


def test_who_was_there_long_before_took_no_part() -> None:
    analyst = Analyst(SALT, CAPACITY)
    ask(analyst, noisy(0, 200), keys=("camera",), name="before")
    (case,) = ask(analyst, squares(0, 60), keys=("mallory",), start=200.0)
    assert (case.pattern, case.keys["camera"]) == ("search", 200)
    assert case.took_part is not None
    assert case.took_part["mallory"] > 50
    assert case.took_part.get("camera", 0) < SUSPECT_QUERIES


def test_what_is_kept_of_a_case_is_bounded() -> None:
    keys, labels = tuple(f"key-{i}" for i in range(200)), tuple(f"label-{i}" for i in range(50))
    (case,) = ask(Analyst(SALT, CAPACITY), squares(0, 400), keys=keys, labels=labels)
    assert len(case.path) <= MAX_STEPS
    assert len(case.keys) <= MAX_KEYS + 1
    assert sum(case.keys.values()) == case.queries == 400
    assert case.took_part is not None
    assert len(case.took_part) == 200  # a reaction has to meet every one of them
    assert case.path[0].number == 1
    assert case.path[-1].request == "q399"


def test_groups_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(analysts, "MAX_GROUPS", 10)
    monkeypatch.setattr(analysts, "MAX_CALLERS", 5)
    analyst = Analyst(SALT, CAPACITY)
    pairs = eight_bit([base(i // 2) + i % 2 for i in range(60)])
    ask(analyst, pairs, keys=tuple(f"key-{i}" for i in range(40)))
    assert len(analyst._groups) <= 10
    assert len(analyst._own) <= 5


def test_a_group_that_makes_room_for_its_neighbour_is_not_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    """A query between an image of the oldest group and one without a group, while there are as many as may be."""
    monkeypatch.setattr(analysts, "MAX_GROUPS", 10)
    far = np.random.default_rng(1).normal(size=base(0).shape)
    oldest = eight_bit([base(0), base(0) + 1, base(0) + 21 * far])
    others = eight_bit([base(100 + i // 2) + i % 2 for i in range(18)])
    between = eight_bit([base(0) + 13 * far])
    analyst = Analyst(SALT, CAPACITY)
    ask(analyst, np.concatenate([oldest, others, between]), keys=("a", "a", "a", *["b"] * 18, "a"))
    assert len(analyst._groups) == 10
    (case,) = [found for found in ask(analyst, squares(5, 60), name="later") if found.pattern == "search"]
    assert case.queries == 60
