"""Tables of the analyses for the terminal."""

from __future__ import annotations

from typing import Any

from rich.table import Table


def layer_table(name: str, report: dict[str, Any]) -> Table:
    """Deviations, V with its interval, and the share of attacked images that have turned, by layer."""
    table = Table("layer", "D attacked", "D noise", "V", "V, right label", "V responses", "turned", title=name)
    for row in report["layers"]:
        own, held, response = row["own_label"]["grad_cam"], row["right_label"]["grad_cam"], row["response"]
        table.add_row(
            row["layer"],
            f"{own['adversarial']:.3f}",
            f"{own['gaussian']:.3f}",
            _with_interval(own),
            _with_interval(held),
            _with_interval(response),
            f"{row['turned']['adversarial']:.2f}",
        )
    return table


def _with_interval(cell: dict[str, Any]) -> str:
    return f"{cell['vulnerability']:.1f} [{cell['interval'][0]:.1f}, {cell['interval'][1]:.1f}]"


def detector_table(attack: str, reports: dict[str, Any]) -> Table:
    """AUROC with its interval, and detection at 5 % false positives, of every score by network."""
    table = Table(attack, *reports)
    columns = [report["attacks"][attack] for report in reports.values()]
    fooled = [f"{c['fooled']} of {report['attacked']}" for c, report in zip(columns, reports.values(), strict=True)]
    table.add_row("images fooled", *fooled)
    for score in dict.fromkeys(name for column in columns for name in column["scores"]):
        cells = [column["scores"].get(score) for column in columns]
        table.add_row(score, *(_auroc_cell(cell) if cell else "-" for cell in cells))
    return table


def _auroc_cell(cell: dict[str, Any]) -> str:
    low, high = cell["interval"]
    return f"{cell['auroc']:.3f} [{low:.3f}, {high:.3f}]  {100 * cell['tpr_0.05']:.0f} %"


def _mean_cell(cell: dict[str, Any]) -> str:
    low, high = cell["interval"]
    return f"{cell['mean']:.3f} [{low:.3f}, {high:.3f}]"


def explanation_table(report: dict[str, Any]) -> Table:
    """A row for each kind of map: areas under deletion (small is good) and insertion, and its share on patches."""
    table = Table("map", "deletion, blur", "insertion, blur", "deletion, mean", "insertion, mean", "on the patch")
    for name in report["faithfulness"]["blur"]:
        areas = [
            report["faithfulness"][b][name][curve] for b in ("blur", "mean") for curve in ("deletion", "insertion")
        ]
        on_patch = report["patch"].get("energy", {}).get(name)
        table.add_row(name, *map(_mean_cell, areas), _mean_cell(on_patch) if on_patch else "-")
    return table


def monitored_table(name: str, report: dict[str, Any]) -> Table:
    """AUROC and detection at 5 % false positives for each set of watched layers, by attack."""
    table = Table("watched", *(f"{attack} (n = {n})" for attack, n in report["attacked"].items()), title=name)
    sets = {
        f"chosen: {', '.join(report['chosen_layers'])}": report["chosen"],
        "all": report["all"],
        "last": report["last"],
    }
    sets |= {f"{layer} alone": found for layer, found in report["single"].items()}
    for watched, found in sets.items():
        table.add_row(watched, *(f"{cell['auroc']:.3f}  {100 * cell['tpr_0.05']:.0f} %" for cell in found.values()))
    drawn = report["random"].values()
    table.add_row(
        f"random, {report['draws']} draws",
        *(f"{c['auroc']['mean']:.3f} [{c['auroc']['min']:.3f}, {c['auroc']['max']:.3f}]" for c in drawn),
    )
    return table
