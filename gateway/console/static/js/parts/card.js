// A robustness card as tables, whatever measurements it has: the worst one first.
import { h } from "../dom.js";
import { percent, words } from "../format.js";
import { isGroup, nameOf, rowsOf, scalars, shown } from "./cardfigures.js";
import { tag } from "./notices.js";
import { table } from "./table.js";

const TITLES = {
  adaptive: [
    "An attacker who knows everything",
    "Share of images answered wrong and not flagged: the figure to plan with. A stronger attack may find more.",
  ],
  systems: [
    "Systems against an attacker who knows them",
    "Wrong and not flagged where each system flags that share of benign images (FPR); an image counts at the worst of " +
      "all attacks.",
  ],
  unaware: [
    "Attackers who do not know the defence",
    "Only images that fool the answering network count. “Max softmax” rejects the least confident answers at the " +
      "same false-positive rate; “undetected” is wrong and not flagged, of all.",
  ],
  detection: [
    "Detection at measured false-positive rates",
    "Share of successful attacks flagged where each reading flags exactly that share of benign images; “class " +
      "distance” is Mahalanobis.",
  ],
  patches: [
    "Patches",
    "Of those that fool the answering network: answered rightly after neutralisation, beside random windows of equal " +
      "area.",
  ],
  patch_adaptive: ["Patches whose maker knows the defence", "Alpha: wrong and not flagged at that rate."],
  harm: ["Harm by neutralisation", "Right answers made wrong by an attacker who aims at it."],
  queries: [
    "Queries over HTTP",
    "Until one answer is wrong and not flagged, by what the gateway discloses; “won” within the budget.",
  ],
  autoattack: ["The companion alone under AutoAttack", "Accuracy, and what the other images fell to."],
  companion_pgd: ["The companion alone under attack", "Accuracy of the adversarially trained network."],
  benign: ["Benign images", "What the defence costs those who attack nothing."],
  shifts: ["Benign shifts", "Flags on images that changed without an attacker, and on images of none of the classes."],
  worst_classes: ["Worst classes", "The class that fares worst, by figure."],
  cascade: [
    "Cascade",
    "Shares flagged when a screen goes first; “screened” images were let off without the full verdict.",
  ],
};
// Not measurements, or shown elsewhere.
const OTHER = new Set(["software", "settings", "samples", "figures"]);
// What comes before the bounds that the build had to keep.
const FIRST = new Set(["adaptive", "systems", "unaware"]);
const FIGURES = {
  accuracy_answering: "Clean accuracy, answering network",
  accuracy_companion: "Clean accuracy, companion",
  accuracy_served: "Clean accuracy, as served",
  control: "Answering network under PGD at a large radius",
  harmed: "Right answers that neutralisation made wrong, benign",
  pgd50_4: "Companion under PGD-50, 4/255",
  pgd50_8: "Companion under PGD-50, 8/255",
  autoattack_4: "Companion under AutoAttack, 4/255",
  autoattack_8: "Companion under AutoAttack, 8/255",
  recovered_patch: "Noisy patches answered rightly after neutralisation",
  recovered_patch_low: "Low-frequency patches answered rightly after neutralisation",
  "flagged_0.01": "Benign images flagged at alpha 1%",
  "flagged_0.05": "Benign images flagged at alpha 5%",
  joint_excess_8: "Joint attack, 8/255, beyond the companion's own error, alpha 5%",
};

export function cardSections(card) {
  const groups = Object.keys(card).filter((name) => isGroup(card[name]) && !OTHER.has(name));
  const order = [
    ...Object.keys(TITLES).filter((name) => groups.includes(name)),
    ...groups.filter((name) => !(name in TITLES)),
  ];
  const sections = order.map((name) => section(name, card[name], card));
  // Attacks first, then what was promised.
  sections.splice(order.filter((name) => FIRST.has(name)).length, 0, bounds(card));
  return sections;
}

/** The highest share of wrong and unflagged answers: { share, where, n, seed }; null without an adaptive attack. */
export function worst(card) {
  if (!isGroup(card.adaptive)) return null;
  const levels = rowsOf(card.adaptive).flatMap(({ path, values }) =>
    Object.entries(values)
      .filter(([key, share]) => key.startsWith("alpha_") && typeof share === "number")
      .map(([key, share]) => ({ share, where: [...path, key].map(nameOf).join(", ") })),
  );
  levels.sort((a, b) => b.share - a.share);
  return levels[0] ? { ...levels[0], n: card.adaptive.n, seed: card.settings?.seed } : null;
}

function bounds(card) {
  const list = card.settings?.bounds ?? [];
  if (!list.length) return null;
  const rows = list.map(({ figure, kind, bound }) => {
    const { value, n, seed } = card.figures?.[figure] ?? {};
    const least = kind === "at_least";
    return [
      FIGURES[figure] ?? words(figure),
      shown("value", value),
      `${least ? "≥" : "≤"} ${percent(bound)}`,
      value === undefined ? tag("not measured", "warn") : kept(least ? value >= bound : value <= bound),
      shown("n", n),
      shown("seed", seed),
    ];
  });
  return h(
    "section",
    { class: "panel" },
    h("h2", {}, "Bounds"),
    h("p", { class: "hint" }, "What the build had to keep; make verify measures it again."),
    table("Bounds", ["Figure", "Value", "Bound", "Kept", "n", "Seed"], rows),
  );
}

const kept = (yes) => (yes ? tag("kept", "ok", "check") : tag("missed", "alert", "cross"));

function section(name, group, card) {
  const [title, text] = TITLES[name] ?? [words(name), null];
  const rows = rowsOf(group);
  const list = rows.length === 1 && !rows[0].path.length;
  const conditions = { seed: card.settings?.seed, ...(list ? { n: group.n } : scalars(group)) };
  const told = Object.entries(conditions).filter(([, value]) => value !== undefined);
  return h(
    "section",
    { class: "panel" },
    h("h2", {}, title),
    text && h("p", { class: "hint" }, text),
    h(
      "p",
      { class: "conditions" },
      told.map(([key, value]) => h("span", {}, `${nameOf(key).toLowerCase()} ${shown(key, value)}`)),
    ),
    list ? listOf(title, rows[0].values) : grid(title, rows),
  );
}

function listOf(title, figures) {
  const rows = Object.entries(figures).filter(([key]) => key !== "n");
  return table(
    title,
    ["Figure", "Value"],
    rows.map(([key, value]) => [nameOf(key), shown(key, value)]),
  );
}

// A group of shares flagged, beside groups of attacks, is about benign images.
const rowName = (key) => (key === "flagged" ? "Benign images" : nameOf(key));

function grid(title, rows) {
  const columns = [...new Set(rows.flatMap(({ values }) => Object.keys(values)))];
  const lines = rows.map(({ path, values }) => [
    path
      .filter((key) => key !== "attacks")
      .map(rowName)
      .join(", "),
    ...columns.map((key) => shown(key, values[key])),
  ]);
  return table(title, ["", ...columns.map(nameOf)], lines);
}
