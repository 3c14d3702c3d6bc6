// What a bundle's manifest says about what is served: facts, and its lists folded.
import { titleOf } from "./scoretitles.js";
import { h } from "../dom.js";
import { count, decimal, percent, pValue, words } from "../format.js";
import { disclosure } from "./code.js";
import { folded } from "./folded.js";
import { table } from "./table.js";

/** The section "What is served" of `model`, an answer of GET /v1/models/{name} at disclosure `full`. */
export function manifestSection(model) {
  const { manifest } = model;
  return h(
    "section",
    { class: "panel question", "data-question": "served" },
    h("h2", {}, "What is served?"),
    h(
      "dl",
      { class: "facts" },
      factsOf(model).map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))),
    ),
    h(
      "div",
      { class: "tables" },
      folded("Monitored layers", layers(model)),
      manifest.calibrations.map(calibration),
      data(manifest.data),
      disclosure("Classes", () => manifest.classes.map((name, i) => `${i}  ${name}`).join("\n")),
      disclosure("Files and their SHA-256", () =>
        Object.entries(manifest.files)
          .map(([name, hash]) => `${hash}  ${name}`)
          .join("\n"),
      ),
      disclosure("Training recipes (JSON)", () => JSON.stringify(manifest.training, null, 1)),
    ),
  );
}

function factsOf(model) {
  const { input, policy, created, classes, companion, scores } = model.manifest;
  const colours = input.channels === 1 ? "grey" : "RGB";
  const { rule = "the manifest's rule", filter = "–", resize_to: to, antialias = true } = input.resize ?? {};
  const resize = `resized by ${rule}${to ? ` to ${to}` : ""} (${filter}${antialias ? "" : ", not antialiased"})`;
  return [
    ["Created", created],
    ["Input", `${input.width} × ${input.height}, ${colours}; ${resize}`],
    ["Classes", count(classes.length)],
    ["Networks", companion ? "answering network and adversarially trained companion" : "answering network"],
    ["Served on", `${model.provider} ${model.precision ?? ""}`],
    ["Policy", `${model.policy} (the bundle's default is ${policy.action})`],
    ["Flag at alpha", `${percent(model.alpha, 1)} (neutralisation starts at ${percent(policy.gate_alpha, 1)})`],
    ["Scores", scores.map((name) => titleOf(model.manifest, name)).join(", ")],
    ...(model.manifest.localiser ? [["Region of attack", titleOf(model.manifest, model.manifest.localiser)]] : []),
  ];
}

const layers = ({ manifest, layer_band: band }) =>
  table(
    "Monitored layers",
    ["Layer", "Channels", "Sensitive neurons", "Benign band (95%)"],
    manifest.layers.map((layer) => [
      layer.name,
      count(layer.channels),
      count(layer.sensitive.length),
      decimal(band?.[layer.name]),
    ]),
  );

function calibration(made) {
  const title = `Calibration, ${made.provider} ${made.precision}`;
  return folded(
    title,
    h(
      "p",
      { class: "hint" },
      `${count(made.n)} benign images in ${count(made.groups)} groups, design effect ${decimal(made.design_effect, 1)}, ${made.date}${made.smallest_p ? `; no image can have a p-value below ${pValue(made.smallest_p)}` : ""}`,
    ),
    table(
      title,
      ["Flags at most (alpha)", "Threshold on p", "Confidence"],
      made.cutoffs.map((cutoff) => [percent(cutoff.alpha, 1), pValue(cutoff.p_cutoff), cutoff.confidence ? percent(cutoff.confidence, 0) : "on average"]),
    ),
  );
}

function data(splits) {
  const counted = Object.entries(splits).filter(([, split]) => split?.n);
  if (!counted.length) return null;
  return folded(
    "Data",
    splits.name && h("p", { class: "hint" }, splits.name),
    table(
      "Data splits",
      ["Split", "Images", "Groups"],
      counted.map(([name, split]) => [words(name), count(split.n), count(split.groups ?? split.n)]),
    ),
  );
}
