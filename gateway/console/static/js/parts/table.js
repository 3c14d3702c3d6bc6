// Tables of figures that fold where the screen is too narrow for columns.
import { h } from "../dom.js";

/** `rows` of cells, the first of each its heading; every other cell also knows its column's name, for folding. */
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
