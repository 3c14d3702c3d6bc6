// Charts of a card: a picture for those who see it, a summary for those who do not, and the values for everyone.
//
// A chart is { kind: "bars" | "lines", title, text, axis, series, rows, share }: `series` are names, `rows` are
// { name, cells } with one { value, interval } or null for each series, and `share` says that values are in [0, 1].
import { h } from "../dom.js";
import { told } from "./cardfigures.js";
import { folded } from "./folded.js";
import { table } from "./table.js";
import { linesOf, NARROW_TICK, WIDE_TICK } from "./ticks.js";

/** The figure of a chart; null where the card has no value for it. */
export function chart(spec) {
  const rows = spec.rows.filter(({ cells }) => cells.some(Boolean));
  if (!rows.length) return null;
  const drawn = { ...spec, rows };
  const canvas = h("canvas", { role: "img", "aria-label": summary(drawn) });
  const style = { "--wide": `${heightOf(drawn, WIDE_TICK)}px`, "--narrow": `${heightOf(drawn, NARROW_TICK)}px` };
  const plot = h("div", { class: "plot", style }, canvas);
  // The values stand below in any case, so that a browser that cannot draw loses no figure.
  import("./plot.js").then(({ draw }) => draw(canvas, drawn)).catch(() => plot.remove());
  return h(
    "figure",
    { class: "chart" },
    h("figcaption", {}, h("h3", {}, spec.title), spec.text && h("p", { class: "hint" }, spec.text)),
    plot,
    folded(`Values: ${spec.title}`, values(drawn)),
  );
}

function values({ title, series, rows, share, rowTitle }) {
  const lines = rows.map(({ name, cells }) => [name, ...cells.map((cell) => told(cell, share))]);
  return table(title, [rowTitle ?? "", ...series], lines);
}

function summary({ kind, title, series, rows, share }) {
  const ranges = series.flatMap((name, i) => {
    const known = rows.filter(({ cells }) => cells[i]).sort((a, b) => a.cells[i].value - b.cells[i].value);
    if (!known.length) return [];
    const say = (row) => `${told({ value: row.cells[i].value }, share)} (${row.name})`;
    return [known.length === 1 ? `${name}: ${say(known[0])}` : `${name}: from ${say(known[0])} to ${say(known.at(-1))}`];
  });
  return `${kind === "bars" ? "Bar" : "Line"} chart: ${title}. ${ranges.join(". ")}. All values are in the table below.`;
}

const LINES = 300;
const AROUND = 96;
const BAR = 11;
const BETWEEN = 13;
const TEXT = 15;

/** Height in pixels: room for every bar, and for every line of the names beside them. */
function heightOf({ kind, series, rows }, tick) {
  if (kind === "lines") return LINES;
  const lines = Math.max(...rows.map(({ name }) => linesOf(name, tick).length));
  return AROUND + rows.length * Math.max(26, BAR * series.length + BETWEEN, TEXT * lines + 4);
}
