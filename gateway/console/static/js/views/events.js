// Flagged inputs: a list that stays up to date, and the review of one of them.
import * as api from "../api.js";
import { announce } from "../announce.js";
import { fill, h } from "../dom.js";
import { ago, count, moment, pValue, percent } from "../format.js";
import { follow } from "../live.js";
import { state } from "../state.js";
import { detailPanel } from "../parts/detail.js";
import { KINDS, REVIEWS, reviewTag, kindTag } from "../parts/eventtags.js";
import { filterBar, matches, query, read } from "../parts/filters.js";
import { empty, failure, loading, tag } from "../parts/notices.js";

const PAGE = 50;
const COLUMNS = ["Input", "Seen", "Kind", "Answer", "p-value", "Review"];

export function eventsView() {
  const bar = filterBar(apply);
  const status = h("span", { class: "live-state", role: "status" });
  const summary = h("p", { class: "summary" });
  const rows = h("tbody", {});
  const table = h("table", { class: "events-table" }, h("caption", { class: "visually-hidden" }, "Flagged inputs, newest first"), h("thead", {}, h("tr", {}, COLUMNS.map((name) => h("th", { scope: "col" }, name)))), rows);
  const foot = h("div", { class: "list-foot" });
  const detail = detailPanel({ onReview: review, onClose: () => select(null) });
  const list = h("section", { class: "panel list", "aria-labelledby": "events-title" }, h("div", { class: "list-head" }, h("h1", { id: "events-title" }, "Flagged inputs"), status), bar.element, summary, table, foot);
  const element = h("div", { class: "events" }, list, detail.element);

  let filters = null;
  let events = [];
  let next = null;
  let selected = null;
  let asking = null;
  let stop = null;
  let clock = null;

  return { element, show, hide };

  async function show(parameters) {
    const wanted = read(parameters);
    bar.draw(wanted, state.models.map((model) => model.name));
    if (!stop) begin();
    if (JSON.stringify(wanted) !== JSON.stringify(filters)) {
      filters = wanted;
      await reload();
    }
    if (parameters.get("id")) open(parameters.get("id"));
  }

  /** Select an event by its id; one that has just come may take a moment to reach the store. */
  async function open(id, attempts = 6) {
    if (!events.some((event) => event.id === id)) {
      try {
        merge([await api.event(id)]);
      } catch (error) {
        if (error.status === 404 && attempts > 1) setTimeout(() => open(id, attempts - 1), 500);
        else fill(foot, failure(error));
        return;
      }
      drawFoot();
    }
    select(id, true);
  }

  function begin() {
    stop = follow({ onEvent: arrive, onPoll: refresh, onState: drawState });
    clock = setInterval(drawTimes, 20_000);
    document.addEventListener("keydown", onKey);
  }

  function hide() {
    stop?.();
    stop = null;
    clearInterval(clock);
    filters = null;
    document.removeEventListener("keydown", onKey);
  }

  function apply(changed) {
    const text = new URLSearchParams(changed).toString();
    location.hash = text ? `#/events?${text}` : "#/events";
  }

  async function reload() {
    events = [];
    next = null;
    fill(rows);
    table.hidden = true;
    fill(foot, loading("Reading the audit trail"));
    await more();
  }

  /** The next page, or the first. */
  async function more() {
    asking?.abort();
    const asked = (asking = new AbortController());
    try {
      const page = await api.events({ ...query(filters), limit: PAGE, cursor: next }, asked.signal);
      merge(page.events);
      next = page.next;
      drawFoot();
      drawSummary();
    } catch (error) {
      if (error.name !== "AbortError") fill(foot, unavailable(error));
    }
  }

  function unavailable(error) {
    if (error.status === 404 || error.code === "audit_unavailable") return [failure(error, more), h("p", { class: "hint" }, "The audit trail may be switched off (PALISADE_AUDIT), or its database does not answer.")];
    return failure(error, more);
  }

  /** Ask for the newest page again; whether the gateway answered. */
  async function refresh() {
    try {
      const page = await api.events({ ...query(filters), limit: PAGE });
      merge(page.events);
      drawFoot();
      drawSummary();
      return true;
    } catch (error) {
      if (error.status === 401) failure(error);
      return false;
    }
  }

  function arrive(event) {
    if (!matches(event, filters) || events.some((known) => known.id === event.id)) return;
    merge([event]);
    drawFoot();
    drawSummary();
    rowOf(event.id)?.classList.add("new");
    announce(`New: ${KINDS[event.kind].toLowerCase()}, ${event.before.label}`);
  }

  function merge(found) {
    const byId = new Map([...events, ...found].map((event) => [event.id, event]));
    // Ids grow with time.
    events = [...byId.values()].sort((a, b) => (a.id < b.id ? 1 : -1));
    drawRows(new Set(found.map((event) => event.id)));
  }

  /** Rows of `changed` events anew, the others as they are, so that focus and selection stay. */
  function drawRows(changed) {
    const known = new Map([...rows.children].map((row) => [row.dataset.id, row]));
    const focused = document.activeElement?.closest?.("tr")?.dataset.id;
    rows.replaceChildren(...events.map((event) => (changed.has(event.id) || !known.has(event.id) ? row(event) : known.get(event.id))));
    if (focused && rows.contains(rowOf(focused))) rowOf(focused).querySelector("button").focus({ preventScroll: true });
    table.hidden = events.length === 0;
    mark();
  }

  function row(event) {
    const { before, after } = event;
    const changed = event.neutralization?.changed;
    return h(
      "tr",
      { "data-id": event.id, onclick: () => select(event.id, true) },
      h("td", { class: "cell-input" }, h("button", { type: "button", "aria-label": `Open ${KINDS[event.kind].toLowerCase()} input answered as ${before.label}, ${moment(event.time)}` }, thumb(event))),
      h("td", { class: "cell-time" }, h("time", { datetime: event.time, title: moment(event.time) }, ago(event.time))),
      h("td", { class: "cell-kind" }, kindTag(event.kind)),
      h("td", { class: "cell-answer" }, h("span", { class: "label" }, before.label), changed && h("span", { class: "hint" }, `→ ${after.label}${event.neutralization.served ? "" : " (not served)"}`)),
      h("td", { class: "cell-p number" }, pValue(event.p_value)),
      h("td", { class: "cell-review" }, reviewTag(event.review)),
    );
  }

  function thumb(event) {
    if (!event.pictures.includes("input")) return h("span", { class: "no-picture", title: "No picture is kept" }, "–");
    return h("img", { class: "pixels", src: api.pictureAddress(event.id, "input"), alt: "", width: 40, height: 40, loading: "lazy" });
  }

  function rowOf(id) {
    return rows.querySelector(`[data-id="${CSS.escape(id)}"]`);
  }

  function select(id, focus = false) {
    const closed = selected;
    selected = id;
    element.classList.toggle("with-detail", id !== null);
    mark();
    const event = events.find((known) => known.id === id);
    detail.draw(event ?? null);
    if (!event) rowOf(closed)?.querySelector("button").focus();
    else if (focus) detail.focusIfCovering();
  }

  function mark() {
    for (const row of rows.children) {
      if (row.dataset.id === selected) row.setAttribute("aria-current", "true");
      else row.removeAttribute("aria-current");
    }
  }

  /** Shown at once, taken back when the gateway refuses. */
  async function review(id, change) {
    const before = events.find((event) => event.id === id);
    put({ ...before, ...change });
    try {
      put(await api.review(id, change));
      announce(`Saved: ${REVIEWS[change.review ?? before.review ?? "none"]}`);
      drawSummary();
      return null;
    } catch (error) {
      put(before);
      if (error.status === 401) failure(error);
      return error;
    }
  }

  function put(event) {
    merge([event]);
    if (selected === event.id) detail.update(event);
  }

  function onKey(press) {
    if (press.ctrlKey || press.metaKey || press.altKey || press.target.closest?.("input, select, textarea")) return;
    const at = events.findIndex((event) => event.id === selected);
    const actions = {
      j: () => step(Math.min(at + 1, events.length - 1)),
      k: () => step(Math.max(at - 1, 0)),
      c: () => at >= 0 && detail.act("confirmed"),
      f: () => at >= 0 && detail.act("false_positive"),
      Escape: () => at >= 0 && select(null),
    };
    if (!Object.hasOwn(actions, press.key)) return;
    press.preventDefault();
    actions[press.key]();
  }

  function step(index) {
    if (!events[index]) return;
    select(events[index].id);
    rowOf(events[index].id).scrollIntoView({ block: "nearest" });
    rowOf(events[index].id).querySelector("button").focus({ preventScroll: true });
  }

  function drawState(name) {
    const shown = { live: ["Live", "ok"], polling: ["Asking every 5 s", "plain"], offline: ["Connection lost, trying again", "warn"] }[name];
    if (status.dataset.state === name) return;
    status.dataset.state = name;
    fill(status, tag(shown[0], shown[1], "dot"));
  }

  function drawTimes() {
    for (const time of rows.querySelectorAll("time")) time.textContent = ago(time.dateTime);
  }

  function drawFoot() {
    if (!events.length) fill(foot, empty("Nothing here", "No input matches these filters. Flagged inputs appear here by themselves."));
    else fill(foot, next && h("button", { type: "button", onclick: more }, `Load ${PAGE} more`));
  }

  async function drawSummary() {
    try {
      const { events: total, by_review: reviews, sample } = await api.eventStats(query(filters));
      const parts = [`${count(total)} in the trail`, `${count(reviews.none)} unreviewed`, `${count(reviews.confirmed)} confirmed`, `${count(reviews.false_positive)} false positives`];
      if (sample.flagged_share !== null && filters.kind === "all") parts.push(`${percent(sample.flagged_share)} of sampled traffic flagged`);
      fill(summary, parts.map((part) => h("span", {}, part)));
    } catch {
      fill(summary);
    }
  }
}
