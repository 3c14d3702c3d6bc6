"""What a card says to a reader, as sections of text and tables that the page and the report lay out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from training.analysis.layers import UNDETERMINED
from training.recipes.evaluation import ALPHAS, DETECTED, RATES

STATUS = {
    "failed": "FAILED: a self-check of the harness did not pass; figures of this card overstate the defence.",
    "incomplete": "Incomplete: units are missing or used fewer images than the settings ask; see the end.",
    "complete": "Complete: every unit was measured, and every self-check passed.",
}
SYSTEMS = {
    "answering": "answering network alone",
    "max_softmax": "+ rejection by maximum softmax (control: a broken detector)",
    "detector": "+ detector",
    "companion": "+ companion",
    "strict": "+ companion, strict",
    "all": "all together",
    "companion_alone": "the companion's own error",
}


@dataclass(frozen=True)
class Table:
    """Cells as text; every row is as long as `head`."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it: text with `code` and **emphasis**, and tables."""

    title: str
    body: Sequence[str | Table]


def headline(bounds: list[dict[str, Any]]) -> Table:
    """The figures that bounds are put on; `bounds` are the rows of `card.check`."""
    kept = {None: "not measured", True: "yes", False: "**no**"}
    signs = {"at_least": ">=", "at_most": "<="}
    return Table(
        ("figure", "value", "bound", "kept", "n"),
        [
            (
                row["title"],
                percent(row["value"]),
                f"{signs[row['kind']]} {percent(row['bound'])}",
                kept[row["pass"]],
                f"{row['n']:,}",
            )
            for row in bounds
        ],
    )


def introduction(card: dict[str, Any]) -> str:
    return (
        f"Measured until {card['date']} by `{card['command']}` ({card['device']}), seed {card['settings']['seed']}, on "
        "the system as served: PNG images through the gateway's decoder, ONNX Runtime session, calibration and policy "
        f"`sanitize`. In brackets: 95 % bootstrap intervals, {_resampled(card)}."
    )


def _resampled(card: dict[str, Any]) -> str:
    frames = card["settings"].get("track_frames")
    if frames is None:
        return "by group where the test split has groups, else by image"
    return (
        f"by track: the test images are frames of tracks of {frames}, which the data set does not name; they are "
        "inferred from likeness (`training/evaluate/harness/tracks.py`)"
    )


def sections(card: dict[str, Any]) -> list[Section]:
    """Everything that was measured, worst first."""
    parts = (
        _adaptive,
        _systems,
        _benign,
        _shifts,
        _companion,
        _curve,
        _served,
        _measured,
        _patches,
        _harm,
        _queries,
        _cascade,
        _layers,
        _explanations,
        _detector,
        _checks,
        _samples,
        _units,
    )
    return [Section(title, body) for part in parts for title, body in part(card)]


Parts = list[tuple[str, list[str | Table]]]


def percent(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{100 * value:.{digits}f} %"


def ranged(group: dict[str, Any], key: str, digits: int = 1) -> str:
    """A share with its interval, where it has one."""
    limits, said = group.get(f"{key}_interval"), percent(group.get(key), digits)
    return said if not limits else f"{said} ({100 * limits[0]:.{digits}f} to {100 * limits[1]:.{digits}f})"


def _has_companion(card: dict[str, Any]) -> bool:
    return bool(card.get("companion", True))


def _by_eps(group: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [(f"{name[4:]}/255", row) for name, row in group.items() if name.startswith("eps_")]


def _adaptive(card: dict[str, Any]) -> Parts:
    if "adaptive" not in card:
        return []
    found, rows = card["adaptive"], []
    for eps, row in _by_eps(found):
        lines = [("all together", "alpha_0.01", "alpha_0.05")]
        if "companion" in row:
            lines.append(("companion alone, same effort", "companion", "companion"))
        if "cascade_0.05" in row:
            lines.append(("all behind the cascade", "cascade_0.01", "cascade_0.05"))
        if "half" in row:
            lines.append(("the companion's error at half the eps, to compare with", "half", "half"))
        rows += [(eps, name, ranged(row, one), ranged(row, five)) for name, one, five in lines]
    if _has_companion(card):
        whole = "answering network, companion and detector"
        note = (
            "`companion alone`: its own error under the same attacks; a wrong answer that the companion shares cannot "
            "be told by its objection."
        )
    else:
        whole = "answering network and detector"
        note = "This bundle has no companion, without which such an attacker is not stopped."
    return [
        (
            "An attacker who knows everything",
            [
                (
                    f"White-box attacks on {whole} at once ({found['targets']} targets x {found['steps']} steps, n = "
                    f"{found['n']}): share of images answered wrong **and not flagged**, at the gateway's cutoffs."
                ),
                Table(("eps", "attacked", "alpha 1 %", "alpha 5 %"), rows),
                f"{note} A stronger attack may find more. This is the figure to plan with.",
            ],
        )
    ]


def _systems(card: dict[str, Any]) -> Parts:
    rows = [
        (eps, title, *(ranged(part[system], f"fpr_{rate:g}") for rate in RATES))
        for eps, part in _by_eps(card.get("systems", {}))
        for system, title in SYSTEMS.items()
        if system in part
    ]
    if not rows:
        return []
    body: list[str | Table] = [
        (
            "Wrong and not flagged, where each system flags that share of the benign test images. An image counts at "
            "the worst of all attacks, and every system meets all of them."
        ),
        Table(("eps", "system", *(f"{100 * rate:g} % flags" for rate in RATES)), rows),
    ]
    stages = [
        (eps, name, str(count)) for eps, counts in _by_eps(card.get("stages", {})) for name, count in counts.items()
    ]
    if stages:
        body += [
            "Images won on the system as served at alpha 5 %, by the attack that won them first:",
            Table(("eps", "attack", "images"), stages),
        ]
    if "doubled" in card:
        row, once, twice = card["doubled"], card["doubled"]["once"], card["doubled"]["twice"]
        told = ", ".join(
            f"{percent(once[key])} becomes {percent(twice[key])} on {name}"
            for key, name in (("served", "the system as served"), ("companion", "the companion"))
            if key in once
        )
        body.append(f"With twice the steps ({2 * row['steps']}), n = {row['n']}: {told}.")
    if "smoothed" in card:
        row = card["smoothed"]
        body.append(
            f"With gradients averaged over {row['samples']} images within {255 * row['jitter']:.0f}/255, on those that "
            f"stood at 8/255 and on which the companion came near to erring, n = {row['n']}: {_averaged(row)}."
        )
    return [("Systems against an attacker who knows them", body)]


def _averaged(row: dict[str, Any]) -> str:
    """What averaging gradients changes on the system as served, by alpha."""
    return ", ".join(
        f"{percent(row['once'][key])} becomes {percent(row['averaged'][key])} at alpha {percent(alpha, 0)}"
        for alpha in ALPHAS
        if (key := f"alpha_{alpha:g}") in row["once"]
    )


def _benign(card: dict[str, Any]) -> Parts:
    if "benign" not in card:
        return []
    found = card["benign"]
    body: list[str | Table] = [
        (
            f"n = {found['n']:,}. Served accuracy {ranged(found, 'accuracy_served')}; flagged at alpha 1 %: "
            f"{percent(found['flagged']['0.01'])}, at 5 %: {percent(found['flagged']['0.05'])}. Neutralisation ran on "
            f"{percent(found['neutralised'])} and turned a right answer into a wrong one on "
            f"{ranged(found, 'harmed', 2)}."
        )
    ]
    if "disagrees" in found:
        body.append(
            f"The companion disagrees with the answering network on {percent(found['disagrees'])}. Where that is more "
            "than the share that may be flagged, its objection cannot count unless it is strong, and an attacker who "
            "knows need not win it over."
        )
    if worst := card.get("worst_classes"):
        names = {"accuracy_answering": "lowest accuracy"} | {
            f"flagged_{alpha:g}": f"most flags at alpha {100 * alpha:g} %" for alpha in ALPHAS
        }
        said = (f"{text}: {worst[key]['class']}, {percent(worst[key]['share'])}" for key, text in names.items())
        body.append(f"Worst classes: {'; '.join(said)}.")
    return [("Benign test images", body)]


def _shifts(card: dict[str, Any]) -> Parts:
    if "shifts" not in card:
        return []
    aim = {None: "-", True: "yes", False: "no"}
    rows = [
        (
            name.replace("_", " "),
            f"{row['n']:,}",
            percent(row.get("accuracy_answering")),
            ranged(row, "alpha_0.01"),
            ranged(row, "alpha_0.05"),
            percent(row.get("worst_class_0.05")),
            aim[row.get("within_aim")],
        )
        for name, row in card["shifts"].items()
        if isinstance(row, dict)
    ]
    return [
        (
            "Benign shifts",
            [
                "What no attacker made. Aim: at most 3 alpha flagged wherever accuracy holds within two points.",
                Table(
                    ("shift", "n", "accuracy", "flagged, alpha 1 %", "alpha 5 %", "worst class, 5 %", "within aim"),
                    rows,
                ),
            ],
        )
    ]


def _companion(card: dict[str, Any]) -> Parts:
    rows = [
        (title.format(row), f"{row['eps']:g}/255", ranged(row, "accuracy"), f"{row['n']:,}")
        for key, title in (("companion_pgd", "PGD-{0[steps]}"), ("autoattack", "AutoAttack ({0[version]})"))
        for row in card.get(key, {}).values()
    ]
    if row := card.get("control"):
        title = f"control: the undefended network, PGD-{row['steps']}, {row['restarts']} restarts"
        rows.append((title, f"{row['eps']:g}/255", ranged(row, "accuracy"), f"{row['n']:,}"))
    if not rows:
        return []
    note = "PGD has one random start, searches in bfloat16 and is judged in float32; any iterate that fools counts."
    title = "The companion alone under attack" if _has_companion(card) else "The undefended network under attack"
    return [(title, [Table(("attack", "eps", "accuracy left", "n"), rows), note])]


def _curve(card: dict[str, Any]) -> Parts:
    if "curve" not in card:
        return []
    found = card["curve"]
    rows = [(name, *map(percent, found[role].values())) for role, name in _ROLES.items() if role in found]
    which = "either network" if _has_companion(card) else "the network"
    return [
        (
            "Security curve",
            [
                f"Accuracy of {which} alone under PGD-{found['steps']}, n = {found['n']:,}; eps of 255.",
                Table(("network", *found["answering"]), rows),
            ],
        )
    ]


_ROLES = {"answering": "answering network", "companion": "companion"}


def _title(name: str, row: dict[str, Any]) -> str:
    return f"{DETECTED[name]}, {row['side']}x{row['side']}" if "side" in row else DETECTED[name]


def _served(card: dict[str, Any]) -> Parts:
    rows = [
        (
            _title(name, row),
            f"{row['n']:,}",
            f"{row['fooled']:,}",
            percent(alpha, 0),
            percent(at["measured_fpr"]),
            ranged(at, "flagged"),
            percent(at["max_softmax"]),
            percent(row["recovered"]),
            percent(at["undetected"]),
        )
        for name, row in card.get("unaware", {}).items()
        for alpha in ALPHAS
        for at in [row[f"alpha_{alpha:g}"]]
    ]
    if not rows:
        return []
    head = (
        "attack",
        "images",
        "fooled",
        "alpha",
        "measured FPR",
        "flagged",
        "max softmax",
        "served right",
        "wrong and unflagged, of all",
    )
    return [
        (
            "Attackers who don't know the defence",
            [
                (
                    "Attacks on the answering network alone; only images that fool it count. `max softmax` rejects "
                    "the least confident answers at the same measured false-positive rate."
                ),
                Table(head, rows),
            ],
        )
    ]


def _measured(card: dict[str, Any]) -> Parts:
    rows = []
    for name, row in card.get("detection", {}).items():
        for rate in ALPHAS:
            at, area = row[f"fpr_{rate:g}"], row["auroc"]["system"]
            rows.append(
                (
                    DETECTED[name],
                    percent(rate, 0),
                    ranged(at, "system"),
                    percent(at["max_softmax"]),
                    percent(at.get("class_distance")),
                    "-" if area is None else f"{area:.3f}",
                )
            )
    if not rows:
        return []
    head = ("attack", "measured FPR", "the system", "max softmax", "Mahalanobis", "AUROC, the system")
    return [
        (
            "Detection at measured false-positive rates",
            ["Where each reading flags exactly that share of the benign test images.", Table(head, rows)],
        )
    ]


def _patches(card: dict[str, Any]) -> Parts:
    rows = [
        (
            _title(name, row),
            f"{row['fooled']:,}",
            ranged(row, "recovered"),
            percent(row["random_windows"]),
            ranged(row, "beyond"),
        )
        for name, row in card.get("patches", {}).items()
    ]
    if row := card.get("patch_adaptive"):
        rows.append(("patch whose maker knows the defence", f"{row['fooled']:,}", ranged(row, "recovered"), "-", "-"))
    if not rows:
        return []
    body: list[str | Table] = [
        (
            "Of the images that fool the answering network: served right, against inpainting a random window of equal "
            "area."
        ),
        Table(("attack", "fooled", "served right", "random windows", "beyond them"), rows),
    ]
    if row:
        body.append(
            f"The maker who knows the defence ({row['targets']} targets x {row['steps']} steps, either kind of patch, "
            f"n = {row['n']}) gets an answer that is wrong and not flagged on {ranged(row, 'alpha_0.01')} at alpha 1 "
            f"%, {ranged(row, 'alpha_0.05')} at 5 %."
        )
    return [("Patches: what neutralisation recovers", body)]


def _harm(card: dict[str, Any]) -> Parts:
    if "harm" not in card:
        return []
    found = card["harm"]
    return [
        (
            "Harm by neutralisation",
            [
                (
                    "Answers that are wrong **because of** neutralisation (the raw answer is right): on benign test "
                    f"images {ranged(card.get('benign', {}), 'harmed', 2)}; under an attacker who aims at it, "
                    f"{found['eps']:g}/255, n = {found['n']:,}: {ranged(found, 'harmed')}."
                )
            ],
        )
    ]


def _queries(card: dict[str, Any]) -> Parts:
    if "queries" not in card:
        return []
    found = card["queries"]
    rows = [
        (told, row["attack"], ranged(row, "won"), f"{row['median']:,.0f}")
        for told, row in found.items()
        if isinstance(row, dict)
    ]
    text = (
        f"Over HTTP, {found['eps']}/255, n = {found['n']}, at most {found['budget']:,} queries an image: until one "
        "answer is wrong and not flagged. Told `full`, an attacker sees maps too, which these attacks do not use."
    )
    body: list[str | Table] = [
        text,
        Table(("told", "attack", "images won", "median of queries (budget where it stood)"), rows),
    ]
    if transferred := card.get("unaware", {}).get(f"transfer_{found['eps']:g}"):
        said = ", ".join(
            f"{percent(transferred[f'alpha_{alpha:g}']['undetected'])} at alpha {percent(alpha, 0)}" for alpha in ALPHAS
        )
        body.append(
            "One query is enough to send an image made on networks of one's own. Of all images that are attacked so "
            f"(n = {transferred['n']:,}) are answered wrong and not flagged: {said}. Where a row above is below that, "
            "its sample was too small or the attack too weak to show it; an attacker has both."
        )
    return [("Queries", body)]


def _cascade(card: dict[str, Any]) -> Parts:
    found = card.get("cascade", {})
    if "screened" not in found:
        return []
    rows = [
        (
            DETECTED.get(name, name),
            f"{row['fooled']:,}",
            percent(row["screened"]),
            percent(row["alpha_0.01"]),
            percent(row["alpha_0.05"]),
        )
        for name, row in found.get("attacks", {}).items()
    ]
    head = ("attack on the answering network", "fooled", "let off by the screen", "flagged, alpha 1 %", "alpha 5 %")
    return [
        (
            "Behind the cascade",
            [
                (
                    f"Off unless it is switched on. The screen lets {percent(found['screened'])} of benign test "
                    f"images off (n = {found['n']:,}); the composite flags {percent(found['flagged']['0.01'])} of "
                    f"them at alpha 1 %, {percent(found['flagged']['0.05'])} at 5 %."
                ),
                Table(head, rows),
            ],
        )
    ]


def _layers(card: dict[str, Any]) -> Parts:
    if "layers" not in card:
        return []
    found, watched = card["layers"], card["layers"]["watched"]
    roles = [role for role in ("answering", "companion") if role in found]
    rows = [
        (
            role,
            row["layer"],
            f"{row['adversarial']:.3f} / {row['gaussian']:.3f}",
            _vulnerability(row),
            f"{row['responses']:.1f}",
            percent(row["turned"], 0),
        )
        for role in roles
        for row in found[role]["rows"]
    ]
    chosen = ", ".join(watched["chosen_layers"])
    sets = {f"{chosen} (chosen)": watched["chosen"], "all": watched["all"]}
    sets |= {f"{layer} alone": told for layer, told in watched["single"].items() if layer != chosen}
    attacks = list(watched["attacked"])
    random = [
        f"{cell['auroc']['mean']:.2f} ({cell['auroc']['min']:.2f} to {cell['auroc']['max']:.2f})"
        for cell in watched["random"].values()
    ]
    fooled = " and ".join(f"{found[role]['fooled']:,} that fool the {_ROLES[role]}" for role in roles)
    return [
        (
            "Layers",
            [
                (
                    f"Test images under PGD-{found['steps']} at {found['eps']}/255, n = {found['n']:,} ({fooled}), and "
                    "under Gaussian noise of equal mean and norm. D: median distance of a layer's Grad-CAM from the "
                    "clean image's; vulnerability V: D attacked over D noise (after Renkhoff et al. 2023). `turned`: "
                    "images whose linear probe at the layer prefers the wrong label. The attack moves the most "
                    f"vulnerable layer's map more than noise does on {percent(found['moved'])} of its images."
                ),
                Table(("network", "layer", "D attacked / noise", "V", "V of responses", "turned"), rows),
                (
                    "Detection by the neuron deviation of watched layers alone: AUROC, then share found at 1 / 5 % of "
                    f"false positives (thresholds of {watched['benign']:,} images of the calibrate split). The layer "
                    "with the largest V on the select split is chosen; the random row has means and ranges of "
                    f"AUROC over {watched['draws']} draws of as many layers."
                ),
                Table(
                    ("watched", *(f"{DETECTED[name]} (n = {watched['attacked'][name]:,})" for name in attacks)),
                    [
                        *((name, *(_found(told[attack]) for attack in attacks)) for name, told in sets.items()),
                        ("random", *random),
                    ],
                ),
            ],
        )
    ]


_ROLES = {"answering": "answering network", "companion": "companion"}


def _vulnerability(row: dict[str, Any]) -> str:
    if row["interval"][1] > UNDETERMINED:
        return "undetermined (maps mostly empty)"
    return f"{row['vulnerability']:.1f} ({row['interval'][0]:.1f} to {row['interval'][1]:.1f})"


def _found(cell: dict[str, float]) -> str:
    return f"{cell['auroc']:.3f}, {100 * cell['tpr_0.01']:.0f} / {100 * cell['tpr_0.05']:.0f} %"


def _explanations(card: dict[str, Any]) -> Parts:
    if "explanations" not in card:
        return []
    found = card["explanations"]
    curves, patch, stable = found["faithfulness"]["blur"], found["patch"], found["stability"]
    rows = []
    for name, areas in curves.items():
        reset = found["randomised_weights"].get(name)
        rows.append(
            (
                name,
                f"{areas['deletion']['mean']:.3f}",
                f"{areas['insertion']['mean']:.3f}",
                _mean(patch, "energy", name),
                _mean(patch, "points", name),
                _mean(stable, name, "rank_correlation"),
                f"{reset[-1]['rank_correlation']:.2f}" if reset else "-",
            )
        )
    head = (
        "map",
        "deletion (low is good)",
        "insertion (high is good)",
        "share on the patch",
        "points at the patch",
        "same under noise",
        "same with random weights (low is good)",
    )
    return [
        (
            "Explanations",
            [
                (
                    f"Benign images, n = {found['n']:,}: areas under the probability of the label while the most "
                    "important pixels are blurred, or come back. Patched images that fool: whether the map of the "
                    "wrong label lies on the patch. Rank correlation of maps under noise of 2/255, and with every "
                    "layer's weights drawn anew."
                ),
                Table(head, rows),
            ],
        )
    ]


def _mean(group: dict[str, Any], first: str, second: str) -> str:
    found = group.get(first, {}).get(second)
    return "-" if not found else f"{found['mean']:.2f}"


def _detector(card: dict[str, Any]) -> Parts:
    rows = [
        (
            row["title"],
            f"`{row['name']}`",
            "region of attack" if row["kind"] == "localiser" else _part_of(row),
            row["meaning"],
        )
        for row in card.get("detector", [])
    ]
    if not rows:
        return []
    return [("What the defence looks at", [Table(("score or localiser", "name", "used as", "meaning"), rows)])]


def _part_of(row: dict[str, Any]) -> str:
    """What a score does in the verdict."""
    parts = [text for key, text in (("fused", "fused"), ("guards", "guard")) if row[key]]
    return " and ".join(parts) or "reported alone"


def _checks(card: dict[str, Any]) -> Parts:
    said = {None: "not measured", True: "passed", False: "**FAILED**"}
    rows = [(row["title"], said[row["passed"]], row["seen"]) for row in card.get("checks", [])]
    text = "Signs that an attack is too weak or that gradients are masked. Passing proves nothing."
    return [("Self-checks", [text, Table(("check", "", "seen"), rows)])] if rows else []


def _samples(card: dict[str, Any]) -> Parts:
    if not card.get("samples"):
        return []
    rows = [
        (
            name,
            row["truth"],
            "yes" if row["flagged"] else "no",
            f"{row['p_value']:.4f}",
            row["before"],
            row["after"] or "-",
            row["label"],
        )
        for name, row in card["samples"].items()
    ]
    return [
        (
            "Samples",
            [
                (
                    "Chosen by a fixed rule (`training/bundling/samples.py`). `before` is the answer to the image as "
                    "it came, `after` the one to the neutralised image, `served` what the caller gets under "
                    "`sanitize`."
                ),
                Table(("file", "truth", "flagged", "p-value", "before", "after", "served"), rows),
            ],
        )
    ]


def _units(card: dict[str, Any]) -> Parts:
    body: list[str | Table] = []
    if card.get("missing"):
        body.append(f"Not measured: {', '.join(f'`{name}`' for name in card['missing'])}.")
    if card.get("reduced"):
        body.append(f"On fewer images than the settings ask: {', '.join(f'`{name}`' for name in card['reduced'])}.")
    rows = [(row["unit"], f"{row['n']:,}", row["date"], f"{row['seconds']:,.0f} s") for row in card.get("units", [])]
    if rows:
        body.append(Table(("unit", "images", "date", "took"), rows))
    return [("What was measured", body)] if body else []
