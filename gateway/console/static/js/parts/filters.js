// Which events are listed: kept in the address, so that a list can be linked to.
import { fill, h } from "../dom.js";

const KINDS = {
  flagged: "Flagged",
  blocked: "Blocked",
  suspect: "Suspect",
  changed: "Changed by neutralisation",
  sample: "Random sample",
  all: "Everything kept",
};
const REVIEWS = { "": "Any", none: "Unreviewed", confirmed: "Confirmed", false_positive: "False positive" };
const SPANS = { "": "Any time", 1: "Last hour", 24: "Last 24 hours", 168: "Last 7 days" };

/** Filters of an address: kind, review, model, hours; what is unknown counts as absent. */
export function read(parameters) {
  const one = (name, known, otherwise) =>
    Object.hasOwn(known, parameters.get(name)) ? parameters.get(name) : otherwise;
  return {
    kind: one("kind", KINDS, "flagged"),
    review: one("review", REVIEWS, ""),
    hours: one("hours", SPANS, ""),
    model: parameters.get("model") ?? "",
  };
}

/** Query parameters of /v1/events. */
export function query({ kind, review, hours, model }) {
  const since = hours ? new Date(Date.now() - hours * 3_600_000).toISOString() : null;
  // Most blocked inputs are flagged ones too.
  const which = kind === "flagged" ? { flagged: true } : { kind: kind === "all" ? null : kind };
  return { ...which, review, model, since };
}

/** Whether an event that has just come belongs to the list. */
export function matches(event, { kind, review, model }) {
  const kindFits = kind === "all" || (kind === "flagged" ? event.flagged : event.kind === kind);
  return kindFits && (!review || review === (event.review ?? "none")) && (!model || model === event.model);
}

/** `apply` is called with the filters that differ from the defaults. */
export function filterBar(apply) {
  const element = h("form", {
    class: "filters",
    "aria-label": "Filters",
    onsubmit: (event) => event.preventDefault(),
    onchange: changed,
  });
  return { element, draw };

  function changed() {
    const given = Object.fromEntries(new FormData(element));
    if (given.kind === "flagged") delete given.kind;
    apply(Object.fromEntries(Object.entries(given).filter(([, value]) => value)));
  }

  function draw(filters, models) {
    // Not while it is in use: a list that is open would close.
    if (element.contains(document.activeElement) && element.childElementCount) return;
    const names = {
      "": "Any",
      ...Object.fromEntries([...new Set([...models, filters.model])].filter(Boolean).map((name) => [name, name])),
    };
    fill(
      element,
      choice("kind", "Kind", KINDS, filters),
      choice("review", "Review", REVIEWS, filters),
      choice("hours", "Time", SPANS, filters),
      choice("model", "Model", names, filters),
    );
  }

  function choice(name, title, options, filters) {
    // An empty key goes first whatever the order of integer-like keys.
    const keys = Object.keys(options).sort((a, b) => Number(b === "") - Number(a === ""));
    return h(
      "label",
      {},
      h("span", {}, title),
      h(
        "select",
        { name },
        keys.map((key) => h("option", { value: key, selected: filters[name] === key }, options[key])),
      ),
    );
  }
}
