// A robustness card by question: what a reader asks, one picture of the answer, and every table folded below it.
import { h } from "../dom.js";
import { count, day, percent } from "../format.js";
import { CHARTS } from "./cardcharts.js";
import { isGroup, nameOf, rowsOf, scalars, shown } from "./cardfigures.js";
import { chart } from "./chart.js";
import { folded } from "./folded.js";
import { tag } from "./notices.js";
import { table } from "./table.js";
import { QUESTIONS } from "./titles.js";

const ASKED = {
  benign: ["What does it cost a benign user?", "False alarms and lost right answers on images that nobody attacked."],
  seen: [
    "Which attacks are seen?",
    "These attackers know the network that answers, but not its defence. Only images that fool the network count.",
  ],
  knows: [
    "What does an attacker who knows reach?",
    "These attackers know every part of the defence and aim at all of it at once. Plan with these figures: a stronger " +
      "attack may find more.",
  ],
  measured: ["What was measured how?", "Bounds that the build had to keep, checks of the measurements, and conditions."],
};
// Groups that are not measurements, or are shown elsewhere.
const OTHER = new Set(["software", "settings", "samples", "figures", "titles", "registration"]);

/** Sections of `card`, one for each question, with charts at the `alpha` that is served. */
export function cardSections(card, alpha, titles) {
  const names = titles.ordered(Object.keys(card).filter((name) => isGroup(card[name]) && !OTHER.has(name)));
  return QUESTIONS.map((question) => {
    const [title, text] = ASKED[question];
    const asked = names.filter((name) => titles.section(name).question === question);
    const charts = CHARTS[question](card, alpha, titles).map(chart).filter(Boolean);
    const tables = [
      question === "measured" && [bounds(card, titles), checks(card), units(card)],
      asked.map((name) => measurement(name, card, titles)),
    ];
    return h(
      "section",
      { class: "panel question", "data-question": question },
      h("h2", {}, title),
      h("p", { class: "prose" }, text),
      charts.length ? h("div", { class: "charts" }, charts) : h("p", { class: "hint" }, "Not measured: there is no chart."),
      h("div", { class: "tables" }, tables),
    );
  });
}

function bounds(card, titles) {
  const list = listOf(card.settings?.bounds);
  if (!list.length) return null;
  const rows = list.map(({ figure, kind, bound }) => {
    const { value, n, seed } = card.figures?.[figure] ?? {};
    const least = kind === "at_least";
    return [
      titles.figure(figure),
      shown("value", value),
      `${least ? "≥" : "≤"} ${percent(bound)}`,
      value === undefined ? tag("not measured", "warn") : kept(least ? value >= bound : value <= bound),
      shown("n", n),
      shown("seed", seed),
    ];
  });
  return folded(
    "Bounds",
    h("p", { class: "hint" }, "The build had to keep these bounds; make verify measures them again."),
    table("Bounds", ["Figure", "Value", "Bound", "Kept", "n", "Seed"], rows),
  );
}

const kept = (yes) => (yes ? tag("kept", "ok", "check") : tag("missed", "alert", "cross"));

function checks(card) {
  const list = listOf(card.checks);
  if (!list.length) return null;
  const rows = list.map(({ title, check, passed, seen }) => [
    title ?? nameOf(check),
    passed ? tag("passed", "ok", "check") : tag("failed", "alert", "cross"),
    seen ?? "–",
  ]);
  return folded(
    "Checks of the measurements",
    h("p", { class: "hint" }, "A measurement of robustness can itself be too weak. These checks would show it."),
    h("div", { class: "texts" }, table("Checks of the measurements", ["Check", "Result", "Seen"], rows)),
  );
}

function units(card) {
  const list = listOf(card.units);
  if (!list.length) return null;
  const reduced = new Set(Array.isArray(card.reduced) ? card.reduced : []);
  const rows = list.map(({ unit, n, date }) => [
    nameOf(unit),
    shown("n", n),
    date ? day(date) : "–",
    reduced.has(unit) ? tag("fewer than planned", "warn") : "as planned",
  ]);
  return folded("Measurements, images and days", table("Measurements", ["Measurement", "n", "Day", "Images"], rows));
}

const listOf = (value) => (Array.isArray(value) ? value.filter(isGroup) : []);

function measurement(name, card, titles) {
  const group = card[name];
  const { title, text } = titles.section(name);
  const rows = rowsOf(group);
  const single = rows.length === 1 && !rows[0].path.length;
  const conditions = { seed: card.settings?.seed, ...(single ? { n: group.n } : scalars(group)) };
  const known = Object.entries(conditions).filter(([, value]) => value !== undefined);
  return folded(
    title,
    text && h("p", { class: "hint" }, text),
    h(
      "p",
      { class: "conditions" },
      known.map(([key, value]) => h("span", {}, `${nameOf(key).toLowerCase()} ${shown(key, value)}`)),
    ),
    single ? figures(title, rows[0].values) : grid(title, name, rows, titles),
  );
}

function figures(title, values) {
  const rows = Object.entries(values).filter(([key]) => key !== "n");
  return table(
    title,
    ["Figure", "Value"],
    rows.map(([key, value]) => [nameOf(key), shown(key, value)]),
  );
}

// A group of shares flagged, beside groups of attacks, is about benign images.
const rowName = (name, key, titles) => (key === "flagged" ? "Benign images" : titles.row(name, key));

function grid(title, name, rows, titles) {
  const columns = [...new Set(rows.flatMap(({ values }) => Object.keys(values)))];
  const lines = rows.map(({ path, values }) => [
    path
      .filter((key) => key !== "attacks")
      .map((key) => rowName(name, key, titles))
      .join(", "),
    ...columns.map((key) => shown(key, values[key])),
  ]);
  return table(title, ["", ...columns.map(nameOf)], lines);
}

/** A line about the card itself: when and how completely it was measured. */
export function provenance(card) {
  const missing = Array.isArray(card.missing) ? card.missing.length : 0;
  const reduced = Array.isArray(card.reduced) ? card.reduced.length : 0;
  const failed = listOf(card.checks).filter(({ passed }) => passed === false).length;
  return h(
    "p",
    { class: "provenance" },
    card.date && h("span", {}, `Measured on ${day(card.date)} with seed ${card.settings?.seed ?? "unknown"}.`),
    missing > 0 && tag(`${count(missing)} measurements missing`, "alert", "alert"),
    failed > 0 && tag(`${count(failed)} checks failed`, "alert", "alert"),
    reduced > 0 && tag(`${count(reduced)} measurements on fewer images than planned`, "warn"),
  );
}
