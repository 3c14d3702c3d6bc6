// The evidence for a flag: scores with their p-values, deviation by layer, the companion's opinion.
import { h, svg } from "../dom.js";
import { decimal, pValue } from "../format.js";
import { pBar } from "./scale.js";
import { meaningOf, titleOf } from "./scoretitles.js";

/** Rows of { name, p_value, layer? }, the strongest first, with the titles of `manifest` (may be null). */
export function evidenceTable(evidence, manifest) {
  const rows = evidence.map(({ name, p_value: p, layer }) => {
    const meaning = meaningOf(manifest, name);
    return h(
      "tr",
      {},
      h(
        "th",
        { scope: "row" },
        titleOf(manifest, name),
        layer && h("span", { class: "faint" }, ` in ${layer}`),
        meaning && h("span", { class: "hint" }, meaning),
      ),
      h("td", { class: "bar-cell" }, pBar(p)),
      h("td", { class: "number" }, pValue(p)),
    );
  });
  const head = ["Score", "", "p-value"].map((text, i) =>
    h("th", { scope: "col", class: i ? "number" : null }, text || h("span", { class: "visually-hidden" }, "Bar")),
  );
  return h(
    "table",
    { class: "evidence" },
    h("caption", { class: "visually-hidden" }, "Evidence by score"),
    h("thead", {}, h("tr", {}, head)),
    h("tbody", {}, rows),
  );
}

/** Rows of { name, deviation, benign_95, p_value? }: bars against the band that 95% of benign images stay under. */
export function layerBars(layers) {
  const top = 1.08 * Math.max(...layers.map((layer) => Math.max(layer.deviation ?? 0, layer.benign_95 ?? 0)), 1e-9);
  const at = (value) => `${(100 * Math.max(0, value)) / top}%`;
  const rows = layers.map(({ name, deviation, benign_95: band, p_value: p }) => {
    const above = band !== undefined && deviation > band;
    const text =
      `${name}: deviation ${decimal(deviation)}` +
      (band === undefined ? "" : `, 95% of benign images stay under ${decimal(band)}`);
    return h(
      "li",
      { class: above ? "above" : null },
      h("span", { class: "name" }, name),
      svg(
        "svg",
        { width: "100%", height: 22, role: "img", "aria-label": text },
        svg("rect", { class: "track", y: 4, width: "100%", height: 14, rx: 2 }),
        band !== undefined && svg("rect", { class: "band", y: 4, width: at(band), height: 14, rx: 2 }),
        svg("rect", { class: "bar", y: 8, width: at(deviation ?? 0), height: 6, rx: 1 }),
        band !== undefined && svg("line", { class: "limit", x1: at(band), x2: at(band), y1: 1, y2: 21 }),
      ),
      h("span", { class: "number" }, decimal(deviation)),
      h(
        "span",
        { class: "state" },
        above ? "above band" : "within",
        p !== undefined && h("span", { class: "faint" }, ` p ${pValue(p)}`),
      ),
    );
  });
  return h(
    "div",
    {},
    h("ul", { class: "layers" }, rows),
    layers.some((layer) => layer.benign_95 !== undefined) &&
      h(
        "p",
        { class: "key" },
        h("span", { class: "swatch band", "aria-hidden": "true" }),
        "benign band: 95% of benign images stay inside",
      ),
  );
}
