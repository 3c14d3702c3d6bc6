// A robustness card as tables, whatever measurements it has: the worst one first.
import { h } from "../dom.js";
import { count, percent, words } from "../format.js";
import { tag } from "./notices.js";

const TITLES = {
  adaptive: [
    "An attacker who knows everything",
    "Share of images answered wrong and not flagged: the figure to plan with. A stronger attack may find more.",
  ],
  unaware: [
    "Attackers who do not know the defence",
    "Only images that fool the answering network count. “Max softmax” rejects the least confident answers at the same false-positive rate; “undetected” is wrong and not flagged, of all.",
  ],
  companion_pgd: ["The companion alone under attack", "Accuracy of the adversarially trained network."],
  benign: ["Benign images", "What the defence costs those who attack nothing."],
};
// Not measurements, or shown elsewhere.
const OTHER = new Set([
  "schema_version",
  "bundle",
  "version",
  "date",
  "command",
  "device",
  "software",
  "settings",
  "samples",
  "figures",
]);
const FIGURES = {
  accuracy_answering: "Clean accuracy, answering network",
  accuracy_companion: "Clean accuracy, companion",
  pgd50_4: "Companion under PGD-50, 4/255",
  pgd50_8: "Companion under PGD-50, 8/255",
  "flagged_0.05": "Benign images flagged at alpha 5%",
};

export function cardSections(card) {
  const known = Object.keys(TITLES).filter((name) => name in card);
  const more = Object.keys(card).filter((name) => !OTHER.has(name) && !(name in TITLES) && isGroup(card[name]));
  const sections = [...known, ...more].map((name) => section(name, card[name], card));
  // The worst first, then what was promised.
  return "adaptive" in card ? [sections[0], bounds(card), ...sections.slice(1)] : [bounds(card), ...sections];
}

/** The highest share of wrong and unflagged answers: { share, where, n, seed }; null without an adaptive attack. */
export function worst(card) {
  if (!isGroup(card.adaptive)) return null;
  const levels = Object.entries(card.adaptive).flatMap(([eps, group]) =>
    isGroup(group)
      ? Object.entries(group)
          .filter(([, share]) => typeof share === "number")
          .map(([alpha, share]) => ({ share, where: `${nameOf(eps)}, ${nameOf(alpha)}` }))
      : [],
  );
  levels.sort((a, b) => b.share - a.share);
  return levels[0] ? { ...levels[0], n: card.adaptive.n, seed: card.settings?.seed } : null;
}

function bounds(card) {
  const list = card.settings?.bounds ?? [];
  if (!list.length) return null;
  const rows = list.map(({ figure, kind, bound }) => {
    const { value, n, seed } = card.figures?.[figure] ?? {};
    const kept = kind === "at_least" ? value >= bound : value <= bound;
    return [
      FIGURES[figure] ?? words(figure),
      percent(value ?? NaN),
      `${kind === "at_least" ? "≥" : "≤"} ${percent(bound)}`,
      tag(kept ? "kept" : "missed", kept ? "ok" : "alert", kept ? "check" : "cross"),
      count(n ?? 0),
      String(seed ?? "–"),
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

function section(name, group, card) {
  const [title, text] = TITLES[name] ?? [words(name), null];
  const rows = leaves(group, [], {});
  const single = rows.length === 1 && !rows[0].path.length;
  const { n, ...figures } = rows[0].values;
  const conditions = Object.entries({ seed: card.settings?.seed, ...(single ? { n } : scalars(group)) }).filter(
    ([, value]) => value !== undefined,
  );
  return h(
    "section",
    { class: "panel" },
    h("h2", {}, title),
    text && h("p", { class: "hint" }, text),
    h(
      "p",
      { class: "conditions" },
      conditions.map(([key, value]) => h("span", {}, `${label(key).toLowerCase()} ${shown(key, value)}`)),
    ),
    single
      ? table(
          title,
          ["Figure", "Value"],
          Object.entries(figures).map(([key, value]) => [label(key), shown(key, value)]),
        )
      : grid(title, rows),
  );
}

function grid(title, rows) {
  const columns = [...new Set(rows.flatMap((row) => Object.keys(row.values)))];
  return table(
    title,
    ["", ...columns.map(label)],
    rows.map((row) => [row.path.map(nameOf).join(", "), ...columns.map((key) => shown(key, row.values[key]))]),
  );
}

/** The innermost groups, each with the figures of the groups around it (but the outermost, which are conditions). */
function leaves(group, path, inherited) {
  const values = path.length ? { ...inherited, ...scalars(group) } : {};
  const inner = Object.entries(group).filter(([, value]) => isGroup(value));
  if (!inner.length) return [{ path, values: path.length ? values : scalars(group) }];
  if (
    !path.length &&
    inner.every(([, value]) => Object.values(value).every((v) => !isGroup(v))) &&
    Object.keys(scalars(group)).length > 3
  ) {
    // Figures with a breakdown or two of the same kind: one list.
    return [
      {
        path,
        values: Object.fromEntries([
          ...Object.entries(scalars(group)),
          ...inner.flatMap(([key, value]) => Object.entries(value).map(([k, v]) => [`${key} at alpha ${k}`, v])),
        ]),
      },
    ];
  }
  return inner.flatMap(([key, value]) => leaves(value, [...path, key], values));
}

const isGroup = (value) => value !== null && typeof value === "object" && !Array.isArray(value);
const scalars = (group) => Object.fromEntries(Object.entries(group).filter(([, value]) => !isGroup(value)));

function nameOf(key) {
  const [, kind, number] = key.match(/^(alpha|eps|pgd)_([\d.]+)$/) ?? [];
  if (kind === "alpha") return `alpha ${percent(Number(number), 0)}`;
  if (kind) return `${kind === "pgd" ? "PGD" : "eps"} ${number}/255`;
  return words(key);
}

const label = (key) =>
  key === "n"
    ? "n"
    : nameOf(key)
        .replace(/fpr/i, "FPR")
        .replace(/alpha (0?\.\d+)/, (_, share) => `alpha ${percent(Number(share), 0)}`);

const COUNTED = new Set(["eps", "steps", "restarts", "targets", "seed", "n", "side", "fooled"]);

function shown(key, value) {
  if (value === null || value === undefined) return "–";
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (Array.isArray(value))
    return value.map((item) => (typeof item === "object" ? JSON.stringify(item) : item)).join(", ");
  if (typeof value !== "number") return String(value);
  if (key === "eps") return `${value}/255`;
  if (COUNTED.has(key) || Math.abs(value) > 1) return Number.isInteger(value) ? count(value) : value.toFixed(2);
  return percent(value, value !== 0 && value < 0.01 ? 2 : 1);
}

/** A table whose cells name their column themselves where the screen is too narrow for columns. */
export function table(caption, columns, rows) {
  const head = columns.map((name, i) =>
    h(
      "th",
      { scope: "col", class: i ? "number" : null },
      name || h("span", { class: "visually-hidden" }, "Measurement"),
    ),
  );
  const line = (cells) =>
    h(
      "tr",
      {},
      cells.map((cell, i) =>
        i ? h("td", { class: "number", "data-label": columns[i] }, cell) : h("th", { scope: "row" }, cell),
      ),
    );
  const made = h(
    "table",
    { class: columns.length > 2 ? "figures" : null },
    h("caption", { class: "visually-hidden" }, caption),
    h("thead", {}, h("tr", {}, head)),
    h("tbody", {}, rows.map(line)),
  );
  return h("div", { class: columns.length > 6 ? "fold wide" : "fold" }, made);
}
