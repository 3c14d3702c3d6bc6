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
  unaware: [
    "Attackers who do not know the defence",
    "Only images that fool the answering network count. “Max softmax” rejects the least confident answers at the " +
      "same false-positive rate; “undetected” is wrong and not flagged, of all.",
  ],
  companion_pgd: ["The companion alone under attack", "Accuracy of the adversarially trained network."],
  benign: ["Benign images", "What the defence costs those who attack nothing."],
  cascade: [
    "Cascade",
    "Shares flagged when a screen goes first; “screened” images were let off without the full verdict.",
  ],
};
// Not measurements, or shown elsewhere.
const OTHER = new Set(["software", "settings", "samples", "figures"]);
const FIGURES = {
  accuracy_answering: "Clean accuracy, answering network",
  accuracy_companion: "Clean accuracy, companion",
  pgd50_4: "Companion under PGD-50, 4/255",
  pgd50_8: "Companion under PGD-50, 8/255",
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
  sections.splice(order.filter((name) => name === "adaptive" || name === "unaware").length, 0, bounds(card));
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
