"""Running units: finished ones are reused, the others are measured and stored one by one."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from gateway.errors import PalisadeError
from training.errors import TrainingError
from training.evaluate.harness.bench import Bench
from training.evaluate.harness.store import digest
from training.evaluate.units import UNITS


@dataclass(frozen=True)
class Plan:
    """One unit before a run: images asked for, images of a finished result, and what the rest may take in seconds."""

    name: str
    n: int
    have: int | None
    seconds: float

    @property
    def done(self) -> bool:
        return self.have is not None and self.have >= self.n


def key_of(bench: Bench, name: str) -> str:
    """What a unit's result depends on but for its number of images."""
    unit = UNITS[name]
    settings = {setting: getattr(bench.settings, setting) for setting in ("seed", *unit.depends)}
    parts: list[object] = [name, bench.served_key, bench.networks_key, settings]
    if unit.version > 1:
        parts.append(unit.version)
    if bench.settings.track_frames is not None:
        parts.append(bench.settings.track_frames)
    return digest(parts)


def finished(bench: Bench, name: str) -> dict[str, Any] | None:
    """The result of a unit, if it was measured on this very bundle, data and settings; of however many images."""
    found = bench.store.result(name)
    if found is None or found.get("key") != key_of(bench, name) or not UNITS[name].fits(found.get("section")):
        return None
    return found


def plan(bench: Bench, names: Sequence[str]) -> list[Plan]:
    """The units in order with what is there and what they may take, by their last run or the rate stated with them."""
    rows = []
    for name in names:
        n = UNITS[name].images(bench.settings, bench.bundle, bench.data)
        found, last = finished(bench, name), bench.store.result(name)
        rate = last["seconds"] / max(last["n"], 1) if last else UNITS[name].seconds
        have = found["n"] if found and not UNITS[name].lacks(bench, found["section"]) else None
        rows.append(Plan(name, n, have, 0.0 if have is not None and have >= n else rate * n))
    return rows


def run_units(bench: Bench, names: Sequence[str], *, log: Callable[[str], None] = lambda _line: None) -> dict[str, str]:
    """Measure the units that are not finished; {unit: why} of those that could not be.

    A unit that cannot run (a package or data that are missing) leaves the others alone.
    """
    todo = [row for row in plan(bench, names) if not row.done and row.n > 0]
    left, failed = sum(row.seconds for row in todo), dict[str, str]()
    for number, row in enumerate(todo, 1):
        unit = UNITS[row.name]
        log(
            f"{number} of {len(todo)}: {row.name}: {unit.title}, n = {row.n:,}, about {duration(row.seconds)}; "
            f"{duration(left)} left in all"
        )
        began = time.perf_counter()
        try:
            found = unit.run(bench)
        except (TrainingError, PalisadeError) as error:
            failed[row.name] = str(error)
            log(f"{row.name}: {error}")
        else:
            seconds = time.perf_counter() - began
            bench.store.finish(
                row.name,
                {
                    "unit": row.name,
                    "key": key_of(bench, row.name),
                    "n": row.n,
                    "seconds": round(seconds, 1),
                    **_now(),
                    **found.to_json(),
                },
            )
        left -= row.seconds
    return failed


def _now() -> dict[str, str]:
    now = datetime.now(UTC).replace(microsecond=0)
    return {"date": now.date().isoformat(), "time": now.isoformat()}


def duration(seconds: float) -> str:
    """Seconds as a duration in words."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
