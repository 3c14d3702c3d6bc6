// The list of events as a table; rows that did not change stay, and with them focus and selection.
import { h } from "../dom.js";
import { ago } from "../format.js";
import { COLUMNS, eventRow } from "./eventrow.js";

/** `select(id, focus)` is called when a row is chosen. */
export function eventTable(select) {
  const rows = h("tbody", {});
  const head = COLUMNS.map((name) => h("th", { scope: "col" }, name));
  const element = h(
    "table",
    { class: "events-table", hidden: true },
    h("caption", { class: "visually-hidden" }, "Flagged inputs, newest first"),
    h("thead", {}, h("tr", {}, head)),
    rows,
  );
  let marked = null;
  return { element, draw, mark, focus, highlight, drawTimes };

  /** Show `events`; rows whose ids are in `changed` are rebuilt. */
  function draw(events, changed = new Set()) {
    const known = new Map([...rows.children].map((row) => [row.dataset.id, row]));
    const focused = document.activeElement?.closest?.("tr")?.dataset.id;
    const kept = ({ id }) => known.has(id) && !changed.has(id);
    rows.replaceChildren(...events.map((event) => (kept(event) ? known.get(event.id) : eventRow(event, select))));
    element.hidden = events.length === 0;
    mark(marked);
    if (focused) buttonOf(focused)?.focus({ preventScroll: true });
  }

  /** Mark the selected row; null marks none. */
  function mark(id) {
    marked = id;
    for (const row of rows.children) {
      if (row.dataset.id === id) row.setAttribute("aria-current", "true");
      else row.removeAttribute("aria-current");
    }
  }

  function focus(id) {
    buttonOf(id)?.closest("tr").scrollIntoView({ block: "nearest" });
    buttonOf(id)?.focus({ preventScroll: true });
  }

  function highlight(events) {
    for (const { id } of events) buttonOf(id)?.closest("tr").classList.add("new");
  }

  function drawTimes() {
    for (const time of rows.querySelectorAll("time")) time.textContent = ago(time.dateTime);
  }

  function buttonOf(id) {
    return rows.querySelector(`[data-id="${CSS.escape(id)}"] button`);
  }
}
