// One event as a row of the list.
import { pictureAddress } from "../api.js";
import { h } from "../dom.js";
import { ago, moment, pValue } from "../format.js";
import { KINDS, kindTag, reviewTag } from "./eventtags.js";

export const COLUMNS = ["Input", "Seen", "Kind", "Answer", "p-value", "Review"];

/** `select(id, focus)` is called when the row is chosen. */
export function eventRow(event, select) {
  const { before, after, neutralization: done, pooled } = event;
  const name = `Open ${KINDS[event.kind].toLowerCase()} input answered as ${before.label}, ${moment(event.time)}`;
  return h(
    "tr",
    { "data-id": event.id, onclick: () => select(event.id, true) },
    h("td", { class: "cell-input" }, h("button", { type: "button", "aria-label": name }, thumb(event))),
    h("td", { class: "cell-time" }, h("time", { datetime: event.time, title: moment(event.time) }, ago(event.time))),
    h("td", { class: "cell-kind" }, kindTag(event.kind)),
    h(
      "td",
      { class: "cell-answer" },
      h("span", { class: "label" }, before.label),
      pooled
        ? h("span", { class: "hint" }, `→ ${pooled.label}`)
        : done?.changed && h("span", { class: "hint" }, `→ ${after.label}${done.served ? "" : " (not served)"}`),
    ),
    h("td", { class: "cell-p number" }, pValue(event.p_value)),
    h("td", { class: "cell-review" }, reviewTag(event.review)),
  );
}

function thumb(event) {
  if (!event.pictures.includes("input")) return h("span", { class: "no-picture", title: "No picture is kept" }, "–");
  const src = pictureAddress(event.id, "input");
  return h("img", { class: "pixels", src, alt: "", width: 40, height: 40, loading: "lazy" });
}
