// Flagged inputs: a list that stays up to date, and the review of one of them.
import * as api from "../api.js";
import { announce } from "../announce.js";
import { fill, h } from "../dom.js";
import { follow } from "../live.js";
import { may, state } from "../state.js";
import { detailPanel } from "../parts/detail.js";
import { eventSummary, liveState } from "../parts/eventstatus.js";
import { eventTable } from "../parts/eventtable.js";
import { KINDS, REVIEWS } from "../parts/eventtags.js";
import { filterBar, matches, query, read } from "../parts/filters.js";
import { empty, failure, loading } from "../parts/notices.js";

const PAGE = 50;
// Number of rows kept while events arrive; rows loaded by hand are added to it.
const ROOM = 300;
const GATHER_MS = 150;

export function eventsView() {
  const bar = filterBar(apply);
  const status = liveState();
  const summary = eventSummary();
  const table = eventTable(select);
  const foot = h("div", { class: "list-foot" });
  const detail = detailPanel({ onReview: review, onClose: () => select(null) });
  const list = h(
    "section",
    { class: "panel list", "aria-labelledby": "events-title" },
    h("div", { class: "list-head" }, h("h1", { id: "events-title" }, "Flagged inputs"), status.element),
    bar.element,
    summary.element,
    table.element,
    foot,
  );
  const element = h("div", { class: "events" }, list, detail.element);

  let filters = null;
  let events = [];
  let next = null;
  let selected = null;
  let asking = null;
  let stop = null;
  let clock = null;
  let room = ROOM;
  let arrived = [];

  return { element, show, hide };

  async function show(parameters) {
    if (!may("reviewer")) {
      fill(foot, empty("Not for this key", "Flagged inputs are for keys with the role reviewer."));
      return;
    }
    const wanted = read(parameters);
    bar.draw(
      wanted,
      state.models.map((model) => model.name),
    );
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
    stop = follow({ onEvent: arrive, onPoll: refresh, onState: status.draw });
    clock = setInterval(table.drawTimes, 20_000);
    document.addEventListener("keydown", onKey);
  }

  function hide() {
    stop?.();
    stop = null;
    clearInterval(clock);
    filters = null;
    arrived = [];
    document.removeEventListener("keydown", onKey);
  }

  function apply(changed) {
    const text = new URLSearchParams(changed).toString();
    location.hash = text ? `#/events?${text}` : "#/events";
  }

  async function reload() {
    events = [];
    next = null;
    room = ROOM;
    table.draw([]);
    fill(foot, loading("Reading the audit trail"));
    await more();
  }

  /** The next page, or the first. */
  async function more() {
    asking?.abort();
    const asked = (asking = new AbortController());
    try {
      const page = await api.events({ ...query(filters), limit: PAGE, cursor: next }, asked.signal);
      room += page.events.length;
      merge(page.events);
      next = page.next;
      drawFoot();
      summary.draw(filters);
    } catch (error) {
      if (error.name !== "AbortError") fill(foot, unavailable(error));
    }
  }

  function unavailable(error) {
    if (error.status === 404 || error.code === "audit_unavailable")
      return [
        failure(error, more),
        h(
          "p",
          { class: "hint" },
          "The audit trail may be switched off (PALISADE_AUDIT), or its database does not answer.",
        ),
      ];
    return failure(error, more);
  }

  /** Fetch the newest page again; returns whether the gateway answered. */
  async function refresh() {
    try {
      const asked = filters;
      const page = await api.events({ ...query(asked), limit: PAGE });
      if (asked !== filters) return true;
      merge(page.events);
      drawFoot();
      summary.draw(filters);
      return true;
    } catch (error) {
      if (error.status === 401) failure(error);
      return false;
    }
  }

  function arrive(event) {
    if (!matches(event, filters) || events.some((known) => known.id === event.id)) return;
    // A burst is drawn once.
    if (!arrived.length) setTimeout(drawArrived, GATHER_MS);
    arrived.push(event);
  }

  function drawArrived() {
    const found = arrived.filter((event) => matches(event, filters));
    arrived = [];
    if (!found.length) return;
    merge(found);
    drawFoot();
    summary.draw(filters);
    table.highlight(found);
    announce(
      found.length > 1
        ? `${found.length} new inputs`
        : `New: ${KINDS[found[0].kind].toLowerCase()}, ${found[0].before.label}`,
    );
  }

  function merge(found) {
    const byId = new Map([...events, ...found].map((event) => [event.id, event]));
    // Ids grow with time.
    events = [...byId.values()].sort((a, b) => (a.id < b.id ? 1 : -1));
    if (events.length > room) {
      events.length = room;
      next = events.at(-1).id;
    }
    table.draw(events, new Set(found.map((event) => event.id)));
  }

  function select(id, focus = false) {
    const closed = selected;
    selected = id;
    element.classList.toggle("with-detail", id !== null);
    table.mark(id);
    const event = events.find((known) => known.id === id);
    detail.draw(event ?? null);
    if (!event) table.focus(closed);
    else if (focus) detail.focusIfCovering();
  }

  /** Show a review at once, and undo it when the gateway refuses; the event may have left the list meanwhile. */
  async function review(before, change) {
    put({ ...before, ...change });
    try {
      const saved = await api.review(before.id, change);
      put(saved);
      announce(`Saved: ${REVIEWS[saved.review ?? "none"]}`);
      summary.draw(filters);
      return null;
    } catch (error) {
      put(before);
      if (error.status === 401) failure(error);
      return error;
    }
  }

  function put(event) {
    if (events.some((known) => known.id === event.id)) merge([event]);
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
    table.focus(events[index].id);
  }

  function drawFoot() {
    if (!events.length)
      fill(foot, empty("Nothing here", "No input matches these filters. Flagged inputs appear here by themselves."));
    else fill(foot, next && h("button", { type: "button", onclick: more }, `Load ${PAGE} more`));
  }
}
