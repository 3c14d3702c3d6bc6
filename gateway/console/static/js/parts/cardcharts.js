// The charts of a card, by question; a chart whose figures the card lacks is left out.
import { capital, percent } from "../format.js";
import { atAlpha, groupsOf, isGroup, measured, nameOf, nearest, numberAt, ratesOf } from "./cardfigures.js";

/** Charts (see chart.js) for each question, at the alpha that is served or, where it was not measured, the nearest. */
export const CHARTS = {
  benign: (card, alpha, titles) => [shifts(card, alpha, titles)],
  seen: (card, alpha, titles) => [detection(card, titles), patches(card, titles)],
  knows: (card, alpha, titles) => [curve(card), systems(card, alpha, titles)],
  measured: (card) => [layers(card)],
};

function shifts(card, alpha, titles) {
  const groups = groupsOf(card.shifts);
  const rate = nearest([...new Set(groups.flatMap(([, group]) => ratesOf(group, "alpha")))], alpha);
  const flagged = isGroup(card.worst_classes) ? card.worst_classes[`flagged_${rate}`] : null;
  const share = numberAt(flagged, "share");
  const worst =
    share === null ? "" : ` Without a change, class “${flagged.class}” fares worst: ${percent(share)} (n = ${flagged.n}).`;
  return {
    kind: "bars",
    title: `False alarms by change of the image, at ${atAlpha(rate ?? alpha)}`,
    text: `Images that changed without an attacker, and images of none of the classes.${worst}`,
    axis: "Share flagged",
    rowTitle: "Change",
    share: true,
    series: ["All images", "Class that fares worst"],
    rows: groups.map(([key, group]) => ({
      name: titles.shift(key),
      cells: [measured(group, `alpha_${rate}`), measured(group, `worst_class_${rate}`)],
    })),
  };
}

function detection(card, titles) {
  const groups = groupsOf(card.unaware);
  const rates = [...new Set(groups.flatMap(([, group]) => ratesOf(group, "alpha")))].sort((a, b) => a - b);
  return {
    kind: "bars",
    title: "Attacks that are flagged",
    text: "Of the images that fool the answering network, the share that is flagged, by alpha.",
    axis: "Share flagged",
    rowTitle: "Attack",
    share: true,
    series: rates.map((rate) => capital(atAlpha(rate))),
    rows: groups.map(([key, group]) => ({
      name: titles.attack(key),
      cells: rates.map((rate) => measured(group[`alpha_${rate}`], "flagged")),
    })),
  };
}

function patches(card, titles) {
  return {
    kind: "bars",
    title: "Patches before and after neutralisation",
    text:
      "Right answers among the images that fool the answering network: none before, by definition. Windows at random " +
      "places show what painting over alone achieves.",
    axis: "Share answered rightly",
    rowTitle: "Patch",
    share: true,
    series: ["Before", "After, windows at random places", "After neutralisation"],
    rows: groupsOf(card.patches).map(([key, group]) => {
      const after = measured(group, "recovered");
      return {
        name: titles.attack(key),
        cells: [after && { value: 0, interval: null }, measured(group, "random_windows"), after],
      };
    }),
  };
}

function curve(card) {
  const networks = groupsOf(card.curve);
  const radii = [...new Set(networks.flatMap(([, group]) => Object.keys(group).map(Number)))].filter(Number.isFinite);
  const rows = radii
    .sort((a, b) => a - b)
    .map((radius) => ({ name: String(radius), cells: networks.map(([, group]) => measured(group, String(radius))) }));
  // Once nothing is left, larger radii say nothing new.
  const end = rows.findIndex(({ cells }) => cells.every((cell) => cell?.value === 0));
  return {
    kind: "lines",
    title: "Networks alone, by size of the attack",
    text:
      "Share of images that each network still answers rightly when every pixel may change by that radius. Radii are " +
      "not to scale.",
    axis: "Right answers",
    rowTitle: "Radius in 1/255",
    share: true,
    series: networks.map(([key]) => nameOf(key)),
    rows: end < 0 ? rows : rows.slice(0, end + 1),
  };
}

function systems(card, alpha, titles) {
  const levels = groupsOf(card.systems);
  const groups = levels.map(([, level]) => groupsOf(level));
  const rates = groups.flat().flatMap(([, group]) => ratesOf(group, "fpr"));
  const rate = nearest([...new Set(rates)], alpha);
  const names = [...new Set(groups.flatMap((level) => level.map(([key]) => key)))];
  return {
    kind: "bars",
    title: "Wrong and not flagged, by system",
    text: `Each system flags ${percent(rate ?? alpha, 0)} of benign images and meets an attacker who knows it. Lower is better.`,
    axis: "Share wrong and not flagged",
    rowTitle: "System",
    share: true,
    series: levels.map(([key]) => nameOf(key)),
    rows: names.map((name) => ({
      name: titles.system(name),
      cells: levels.map(([, level]) => measured(level[name], `fpr_${rate}`)),
    })),
  };
}

function layers(card) {
  // The layers that are monitored are the answering network's.
  const rows = card.layers?.answering?.rows;
  return {
    kind: "bars",
    title: "How much an attack moves each layer of the answering network",
    text: "Relative change of the layer's output under attack, beside its change under noise of the same size.",
    axis: "Relative change",
    rowTitle: "Layer",
    share: false,
    series: ["Under attack", "Under noise"],
    rows: (Array.isArray(rows) ? rows.filter(isGroup) : []).map((row) => ({
      name: String(row.layer),
      cells: [measured(row, "adversarial"), measured(row, "gaussian")],
    })),
  };
}
