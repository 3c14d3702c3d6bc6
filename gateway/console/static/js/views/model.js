// Model: what is served, and how robust it was measured to be, the worst first.
import { fill, h } from "../dom.js";
import { count, decimal, percent, pValue, words } from "../format.js";
import * as api from "../api.js";
import { load, state } from "../state.js";
import { cardSections, worst } from "../parts/card.js";
import { disclosure } from "../parts/code.js";
import { empty, failure, loading } from "../parts/notices.js";
import { table } from "../parts/table.js";
import { titleOf } from "../parts/titles.js";

export function modelView() {
  const element = h("div", { class: "model" });
  let drawn = null;
  return { element, show: draw, hide: () => (drawn = null) };

  async function draw() {
    const name = state.model?.name;
    if (!name || name === drawn) return;
    drawn = name;
    fill(element, loading("Reading manifest and card"));
    try {
      const model = await api.model(name);
      if (drawn === name) fill(element, content(model));
      // Another version was made active since the console was opened.
      if (model.version !== state.model?.version) await load();
    } catch (error) {
      if (drawn !== name) return;
      drawn = null;
      fill(element, failure(error, draw));
    }
  }
}

function content(model) {
  const { manifest, card } = model;
  return [
    h(
      "header",
      { class: "panel model-head" },
      h("h1", {}, model.name, h("span", { class: "version" }, model.version)),
      h("p", { class: "prose" }, model.description),
      card ? headline(card, model) : null,
    ),
    h(
      "div",
      { class: "cards" },
      card ? cardSections(card) : noCard(model),
      manifest && manifestSections(model, manifest),
    ),
  ];
}

function noCard({ manifest }) {
  if (!manifest) return empty("Not for this key", "Manifest and robustness card are for keys that see everything.");
  return empty("No card", "This bundle was not evaluated: nothing is known of its robustness.");
}

function headline(card, model) {
  const level = worst(card);
  const { benign, figures } = card;
  return h(
    "div",
    { class: "headline" },
    level &&
      figure(
        "alert",
        percent(level.share),
        "wrong and not flagged, at worst",
        `attacker who knows everything, ${level.where}; n = ${level.n}, seed ${level.seed}`,
      ),
    figures?.pgd50_8 &&
      figure(
        "plain",
        percent(figures.pgd50_8.value),
        "companion's accuracy under PGD-50",
        `eps 8/255; n = ${count(figures.pgd50_8.n)}, seed ${figures.pgd50_8.seed}`,
      ),
    benign &&
      figure(
        "plain",
        percent(benign.accuracy_served),
        "right answers on benign images",
        `as served; n = ${count(benign.n)}`,
      ),
    benign?.flagged?.[model.alpha] !== undefined &&
      figure(
        "plain",
        percent(benign.flagged[model.alpha]),
        "of benign images flagged",
        `at alpha ${percent(model.alpha, 0)}; n = ${count(benign.n)}`,
      ),
  );
}

const figure = (tone, value, title, where) =>
  h(
    "div",
    { class: `figure ${tone}` },
    h("span", { class: "value" }, value),
    h("span", { class: "title" }, title),
    h("span", { class: "hint" }, where),
  );

function manifestSections(model, manifest) {
  const { input, policy, calibrations, layers, data } = manifest;
  const facts = [
    ["Created", manifest.created],
    [
      "Input",
      `${input.width} × ${input.height}, ${input.channels === 1 ? "grey" : "RGB"}; resized by ${input.resize?.rule ?? "the manifest's rule"} (${input.resize?.filter ?? "–"})`,
    ],
    ["Classes", count(manifest.classes.length)],
    ["Networks", manifest.companion ? "answering network and adversarially trained companion" : "answering network"],
    ["Served on", `${model.provider} ${model.precision ?? ""}`],
    ["Policy", `${model.policy} (bundle's default: ${policy.action})`],
    ["Flag at alpha", `${percent(model.alpha, 1)} (gate of neutralisation: ${percent(policy.gate_alpha, 1)})`],
    ["Scores", manifest.scores.map((name) => titleOf(manifest, name)).join(", ")],
    ["Region of attack", manifest.localiser && titleOf(manifest, manifest.localiser)],
  ];
  const splits = Object.entries(data).filter(([, split]) => split?.n);
  return [
    h(
      "section",
      { class: "panel" },
      h("h2", {}, "What is served"),
      h(
        "dl",
        { class: "facts" },
        facts.filter(([, value]) => value).map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))),
      ),
    ),
    h(
      "section",
      { class: "panel" },
      h("h2", {}, "Monitored layers"),
      table(
        "Monitored layers",
        ["Layer", "Channels", "Sensitive neurons", "Benign band (95%)"],
        layers.map((layer) => [
          layer.name,
          count(layer.channels),
          count(layer.sensitive.length),
          decimal(model.layer_band?.[layer.name]),
        ]),
      ),
    ),
    calibrations.map(calibration),
    splits.length > 0 &&
      h(
        "section",
        { class: "panel" },
        h("h2", {}, "Data"),
        data.name && h("p", { class: "hint" }, data.name),
        table(
          "Data splits",
          ["Split", "Images", "Groups"],
          splits.map(([name, split]) => [words(name), count(split.n), count(split.groups ?? split.n)]),
        ),
      ),
    h(
      "section",
      { class: "panel disclosures" },
      disclosure("Classes", () => manifest.classes.map((name, i) => `${i}  ${name}`).join("\n")),
      disclosure("Files and their SHA-256", () =>
        Object.entries(manifest.files)
          .map(([name, hash]) => `${hash}  ${name}`)
          .join("\n"),
      ),
      disclosure("Training recipes (JSON)", () => JSON.stringify(manifest.training, null, 1)),
    ),
  ];
}

function calibration(made) {
  const title = `Calibration, ${made.provider} ${made.precision}`;
  return h(
    "section",
    { class: "panel" },
    h("h2", {}, title),
    h(
      "p",
      { class: "hint" },
      `${count(made.n)} benign images in ${count(made.groups)} groups, design effect ${decimal(made.design_effect, 1)}, ${made.date}`,
    ),
    table(
      title,
      ["Flags at most (alpha)", "Threshold on p", "Confidence"],
      made.cutoffs.map((cutoff) => [percent(cutoff.alpha, 1), pValue(cutoff.p_cutoff), percent(cutoff.confidence, 0)]),
    ),
  );
}
