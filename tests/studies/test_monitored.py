from __future__ import annotations

from studies.monitored import monitored_layers


def test_the_most_vulnerable_taps_are_compared_with_all_the_last_and_random_ones(trained, toy) -> None:
    report = monitored_layers(trained, toy, images=24, count=2, steps=5, draws=3)
    assert set(report["vulnerability"]) == set(trained.tap_channels)
    ranked = sorted(report["vulnerability"], key=lambda layer: -report["vulnerability"][layer])
    assert set(report["chosen_layers"]) == set(ranked[:2])
    assert "PGD 8/255" in report["attacked"]
    assert report["benign"] == len(toy.calibrate)
    for watched in ("chosen", "all", "last", "random"):
        assert set(report[watched]) == set(report["attacked"])
