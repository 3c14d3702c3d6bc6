// p-values on a logarithmic scale: the further right, the more unusual among benign images.
import { h, svg } from "../dom.js";
import { pValue } from "../format.js";

const LOWEST = 1e-4;
const TICKS = [1, 0.1, 0.01, 0.001, 0.0001];

/** Position in percent of `p` on a scale that ends at `lowest`. */
export function position(p, lowest = LOWEST) {
  return Math.min(100, (100 * Math.log10(Math.max(p, lowest))) / Math.log10(lowest));
}

/** The p-value of a verdict against its threshold. */
export function pScale({ p_value: p, p_cutoff: cutoff, flagged, level }) {
  const lowest = Math.min(LOWEST, p);
  const at = (value) => `${position(value, lowest)}%`;
  const text = `p-value ${pValue(p)}, threshold ${pValue(cutoff)}: ${flagged ? "beyond" : "not beyond"} the threshold`;
  return h(
    "div",
    { class: `p-scale ${flagged ? "flagged" : level === "suspect" ? "suspect" : "calm"}` },
    svg(
      "svg",
      { width: "100%", height: 78, role: "img", "aria-label": text },
      svg("rect", { class: "track", x: 0, y: 32, width: "100%", height: 10, rx: 2 }),
      svg("rect", { class: "zone", x: at(cutoff), y: 32, width: `${100 - position(cutoff, lowest)}%`, height: 10 }),
      TICKS.filter((tick) => tick >= lowest).map((tick) => [
        svg("line", { class: "tick", x1: at(tick), x2: at(tick), y1: 42, y2: 46 }),
        label(position(tick, lowest), 58, "faint", String(tick)),
      ]),
      svg("line", { class: "cutoff", x1: at(cutoff), x2: at(cutoff), y1: 26, y2: 48 }),
      label(position(cutoff, lowest), 74, "threshold", `threshold ${pValue(cutoff)}`),
      svg("svg", { x: at(p), y: 37, overflow: "visible" }, svg("path", { class: "point", d: "M0-9L7 0 0 9-7 0z" })),
      label(position(p, lowest), 18, "value", `p = ${pValue(p)}`),
    ),
    h("p", { class: "ends", "aria-hidden": "true" }, h("span", {}, "ordinary"), h("span", {}, "more anomalous")),
  );
}

/** A short bar for one p-value, on the same scale. */
export function pBar(p) {
  return svg(
    "svg",
    { class: "p-bar", width: "100%", height: 8, "aria-hidden": "true" },
    svg("rect", { class: "track", width: "100%", height: 8, rx: 1.5 }),
    svg("rect", { class: "bar", width: `${position(p)}%`, height: 8, rx: 1.5 }),
  );
}

/** A share in [0, 1], linear. */
export function shareBar(share) {
  return svg(
    "svg",
    { class: "share-bar", width: "100%", height: 4, "aria-hidden": "true" },
    svg("rect", { class: "track", width: "100%", height: 4 }),
    svg("rect", { class: "bar", width: `${100 * share}%`, height: 4 }),
  );
}

function label(x, y, kind, text) {
  const anchor = x < 12 ? "start" : x > 88 ? "end" : "middle";
  return svg("text", { class: kind, x: `${x}%`, y, "text-anchor": anchor }, text);
}
