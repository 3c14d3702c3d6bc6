// The five figures of a card that a product owner plans with, each with a sentence and the conditions it was measured in.
import { h } from "../dom.js";
import { count, day, percent } from "../format.js";
import { atAlpha, isGroup, measured, nameOf, numberAt, ratesOf, rowsOf } from "./cardfigures.js";

/** The five figures of `card` at the alpha that is served. */
export function headline(card, alpha, titles) {
  return h(
    "ul",
    { class: "headline" },
    [right, falseAlarms, known, patches, worst].map((make) => figure(card, make(card, alpha, titles))),
  );
}

function right(card) {
  return {
    title: "Right answers on benign images",
    sentence: "This share of ordinary images gets the right answer, as served.",
    found: measured(card.benign, "accuracy_served"),
    n: numberAt(card.benign, "n"),
    unit: "benign",
  };
}

function falseAlarms(card, alpha) {
  const { benign } = card;
  const key = keyOf(benign?.flagged, alpha);
  const value = key === null ? null : numberAt(benign.flagged, key);
  return {
    title: "Benign images flagged",
    sentence: `This share of ordinary images raises a false alarm at the served ${atAlpha(alpha)}.`,
    found: measured({ flagged: value, flagged_interval: benign?.[`flagged_${key}_interval`] }, "flagged"),
    n: numberAt(benign, "n"),
    unit: "benign",
    measuredAt: Object.keys(isGroup(benign?.flagged) ? benign.flagged : {}).map(Number),
  };
}

function known(card, alpha, titles) {
  const group = card.unaware?.pgd_8;
  const key = keyOf(group, alpha, "alpha");
  return {
    title: "Attacks that are seen",
    sentence: `${titles.attack("pgd_8")}: this share of the images that fool the network is flagged at ${atAlpha(alpha)}. The attacker does not know the defence.`,
    found: key === null ? null : measured(group[key], "flagged"),
    n: numberAt(group, "fooled"),
    unit: "pgd_8",
    measuredAt: ratesOf(group, "alpha"),
  };
}

function patches(card, _, titles) {
  const group = card.patches?.patch ?? card.unaware?.patch;
  return {
    title: "Patches answered rightly after neutralisation",
    sentence: `${titles.attack("patch")}: this share of the images that fool the network is answered rightly once the patch is painted over.`,
    found: measured(group, "recovered"),
    n: numberAt(group, "fooled"),
    unit: "patch",
  };
}

function worst(card, alpha, titles) {
  const levels = levelsOf(card, alpha, titles);
  const [first, ...others] = levels;
  const rest = others.map(({ where, value }) => `${where}, ${percent(value)}`).join("; ");
  return {
    tone: "alert",
    title: "At worst: wrong and not flagged",
    sentence: first
      ? `An attacker who knows everything gets this share through at ${atAlpha(alpha)} (${first.where}).` +
        (rest ? ` Other attacks of that kind: ${rest}.` : "")
      : `The share that an attacker who knows everything gets through at ${atAlpha(alpha)}.`,
    found: first ?? null,
    n: first?.n,
    unit: first?.unit,
    measuredAt: measuredRates(card),
  };
}

// Sections of attackers who know the defence, and their figures of what is served: without and with a screen before it.
const KNOWS = ["adaptive", "patch_adaptive"];
const SERVED = /^(alpha|cascade)_([\d.]+)$/;

function measuredRates(card) {
  const groups = KNOWS.map((name) => card[name]).filter(isGroup);
  return [...new Set(groups.flatMap(rowsOf).flatMap(({ values }) => ratesOf(values, "alpha")))];
}

/** What each attacker who knows everything gets through at `alpha`, the highest share first. */
function levelsOf(card, alpha, titles) {
  const levels = KNOWS.filter((name) => isGroup(card[name])).flatMap((name) =>
    rowsOf(card[name]).map(({ path, values }) => {
      const keys = Object.keys(values).filter((key) => Number(key.match(SERVED)?.[2]) === alpha);
      const known = keys.filter((key) => numberAt(values, key) !== null).sort((a, b) => values[b] - values[a]);
      if (!known.length) return null;
      const group = path.reduce((inner, step) => inner?.[step], card[name]);
      return {
        ...measured(isGroup(group) ? group : values, known[0]),
        where: path.length ? path.map(nameOf).join(", ") : titles.section(name).title,
        n: values.n ?? card[name].n,
        unit: path.length ? `${name}_${path.at(-1).replace(/^eps_/, "")}` : name,
      };
    }),
  );
  return levels.filter(Boolean).sort((a, b) => b.value - a.value);
}

/** The key of a group that stands for `alpha`: `0.05`, or `alpha_0.05` with the prefix `alpha`; null without one. */
function keyOf(group, alpha, prefix = "") {
  const start = prefix && `${prefix}_`;
  const keys = isGroup(group) ? Object.keys(group) : [];
  return keys.find((key) => key.startsWith(start) && Number(key.slice(start.length)) === alpha) ?? null;
}

function figure(card, { tone = "plain", title, sentence, found, n, unit, measuredAt }) {
  return h(
    "li",
    { class: `figure ${found ? tone : "unknown"}` },
    h("h3", { class: "title" }, title),
    h("p", { class: "value" }, found ? percent(found.value) : "not measured"),
    h("p", { class: "sentence" }, sentence),
    h("p", { class: "hint" }, found ? conditions(card, found, n, unit) : without(measuredAt)),
  );
}

function conditions(card, { interval }, n, unit) {
  const made = Array.isArray(card.units) ? card.units.find((one) => one?.unit === unit) : null;
  const date = made?.date ?? card.date;
  return [
    interval && `95% interval ${percent(interval[0])} to ${percent(interval[1])}`,
    Number.isFinite(n) && `n\u00a0=\u00a0${count(n)}`,
    `seed\u00a0${card.settings?.seed ?? "unknown"}`,
    date ? day(date) : "no date",
  ]
    .filter(Boolean)
    .join(", ");
}

const without = (rates = []) =>
  rates.length ? `The card has this figure at ${rates.map(atAlpha).join(" and ")} only.` : "The card lacks this figure.";
