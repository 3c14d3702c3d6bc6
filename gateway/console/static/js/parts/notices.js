// Loading, empty and failed, the same everywhere.
import { h, icon } from "../dom.js";

export const loading = (text) =>
  h("p", { class: "notice", role: "status" }, h("span", { class: "spinner", "aria-hidden": "true" }), `${text} …`);

export const empty = (title, text) =>
  h("div", { class: "notice empty" }, h("p", { class: "strong" }, title), h("p", {}, text));

const TITLES = {
  unreachable: "No connection",
  blocked_by_policy: "Blocked by policy",
  not_certified: "Not certified",
  overloaded: "Busy",
  audit_unavailable: "No audit trail",
  401: "Log in first",
  403: "Not allowed",
  429: "Too many requests",
  503: "Not available",
};

/** What went wrong, and a button that tries again where that can help. */
export function failure(error, again = null, more = null) {
  if (error.status === 401) window.dispatchEvent(new Event("palisade:signed-out"));
  const retry = error.retryAfter ? ` Try again in ${error.retryAfter} s.` : "";
  return h(
    "div",
    { class: "notice failure", role: "alert" },
    h("p", { class: "strong" }, icon("alert"), TITLES[error.code] ?? TITLES[error.status] ?? "That did not work"),
    h("p", {}, `${error.message}${retry}`),
    more,
    again && h("button", { type: "button", onclick: () => again() }, "Try again"),
  );
}

export const tag = (text, tone, symbol = null) => h("span", { class: `tag ${tone}` }, symbol && icon(symbol), text);
