"""What an attacker who knows the cascade gains by it: `python -m studies.cascade models/gtsrb --n 300 --eps 8`.

On more test images than the card's unit asks for, with the attacks that bear on what is served alone: the companion's
error, both networks confident, the guard, everything as served at both levels, and everything through the screen. An
image counts at the worst of all of them, at each level, once with the cascade and once without, so that both shares are
of the same images and attacks. Chunks that are done are kept in `--work`.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.record import record
from gateway.core.loading import load_bundle
from training.bundling.provenance import made_with
from training.commands.terminal import JsonPath, Threads, command, progress_bars, use_threads
from training.evaluate.harness.bench import Bench
from training.evaluate.harness.store import Store
from training.evaluate.harness.suite import GUARD_STAGE, JOINT, carry_out, stages, stricter, union_of
from training.evaluate.harness.systems import ALONE, Systems
from training.recipes.evaluation import ALPHAS
from training.util.statistics import interval

SCREEN = "joint, through the screen"
"""The stage of `training.evaluate.harness.suite` that no system without a cascade has."""


def main(
    path: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder of a bundle with a cascade.")],
    n: Annotated[int, typer.Option(min=2, help="Test images.")] = 300,
    eps: Annotated[float, typer.Option(min=0.1, help="Radius in Linf, of 255.")] = 8.0,
    steps: Annotated[int, typer.Option(min=1, help="Steps of an attack.")] = 60,
    targets: Annotated[int, typer.Option(min=1, help="Classes that are aimed at.")] = 5,
    threads: Threads = None,
    work: Annotated[Path | None, typer.Option(help="Folder for chunks that are done.")] = None,
    json_path: JsonPath = None,
) -> None:
    """Measure wrong and unflagged answers with and without the cascade."""
    use_threads(threads)
    console, bundle = Console(), load_bundle(path)
    data, settings = made_with(bundle)
    settings = settings.model_copy(update={"adaptive": n, "adaptive_steps": steps, "adaptive_targets": targets})
    with TemporaryDirectory() as folder, progress_bars() as bars:
        bench = Bench(bundle, data, settings, Store(work or Path(folder)), bars.step)
        systems = Systems(bench)
        wanted = (ALONE, "confident", GUARD_STAGE, JOINT, SCREEN)
        plan = [stage for stage in stages(systems) if stage.name in wanted]
        if SCREEN not in [stage.name for stage in plan]:
            raise SystemExit(f"{path} has no cascade")
        effort: dict[str, Any] = {"eps": eps, "count": n, "steps": steps}
        rows = carry_out(bench, systems, plan, "cascade", **effort)
        level = [stage for stage in stricter(systems) if stage.until.startswith("served@")]
        rows |= carry_out(bench, systems, level, "cascade-stricter", **effort, before=rows)
        group = bench.first(n).group
    union = union_of(rows, systems.columns)
    figures: dict[str, Any] = {
        "bundle": f"{bundle.name} {bundle.version}",
        "n": len(group),
        "seed": settings.seed,
        **effort,
    }
    table = Table("alpha", "without the cascade", "with it", "difference", box=None)
    for alpha in ALPHAS:
        without, behind = union[f"served@{alpha:g}"], union[f"cascade@{alpha:g}"]
        figures[f"alpha_{alpha:g}"] = {
            "without": [float(without.mean()), interval(without, group)],
            "with": [float(behind.mean()), interval(behind, group)],
            "won_with_the_cascade_alone": int((behind & ~without).sum()),
            "won_without_it_alone": int((without & ~behind).sum()),
        }
        shares = (float(without.mean()), float(behind.mean()))
        table.add_row(f"{alpha:g}", *(f"{100 * share:.1f} %" for share in (*shares, shares[1] - shares[0])))
    console.print(table)
    console.print_json(data=figures)
    if json_path is not None:
        record(json_path, "the cascade's loss to an attacker who knows it", figures)


if __name__ == "__main__":
    typer.run(command(main))
