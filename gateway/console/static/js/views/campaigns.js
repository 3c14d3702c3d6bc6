// Query campaigns: groups of near-duplicate queries, and the case file of one of them.
import * as api from "../api.js";
import { fill, h } from "../dom.js";
import { ago, count, decimal, moment, pValue, words } from "../format.js";
import { may } from "../state.js";
import { empty, failure, loading } from "../parts/notices.js";

const PATTERNS = {
  search: "Campaigns",
  video: "Videos",
  still_camera: "Cameras at rest",
  stuck_camera: "Stuck cameras",
  retries: "Retries",
  all: "All groups",
};
const COLUMNS = ["Last seen", "What", "Queries", "Keys", "Label flips", "Lowest p"];
const PAGE = 50;

export function campaignsView() {
  const choice = h(
    "select",
    { "aria-label": "Which groups", onchange: () => reload() },
    Object.entries(PATTERNS).map(([value, text]) => h("option", { value }, text)),
  );
  const rows = h("tbody", {});
  const table = h(
    "table",
    { class: "events-table", hidden: true },
    h("caption", { class: "visually-hidden" }, "Groups of near-duplicate queries, those that grew last first"),
    h("thead", {}, h("tr", {}, COLUMNS.map((name) => h("th", { scope: "col" }, name)))),
    rows,
  );
  const foot = h("div", { class: "list-foot" });
  const detail = h("section", { class: "panel detail", "aria-label": "Case file", hidden: true });
  const list = h(
    "section",
    { class: "panel list", "aria-labelledby": "campaigns-title" },
    h("div", { class: "list-head" }, h("h1", { id: "campaigns-title" }, "Campaigns"), choice),
    table,
    foot,
  );
  const element = h("div", { class: "events" }, list, detail);
  let next = null;
  // Answers to what was asked before are not shown.
  let asking = null;
  let opening = null;

  return { element, show };

  async function show(parameters) {
    if (!may("reviewer")) {
      fill(foot, empty("Not for this key", "Campaigns are for keys with the role reviewer."));
      return;
    }
    await reload();
    if (parameters.get("id")) await open(parameters.get("id"));
  }

  async function reload() {
    rows.replaceChildren();
    table.hidden = true;
    next = null;
    fill(foot, loading("Reading case files"));
    await more();
  }

  async function more() {
    const asked = (asking = {});
    try {
      const page = await api.campaigns({ pattern: choice.value, limit: PAGE, cursor: next });
      if (asked !== asking) return;
      rows.append(...page.campaigns.map(row));
      table.hidden = rows.children.length === 0;
      next = page.next;
      if (table.hidden) fill(foot, empty("Nothing here", "No group of queries looks like that."));
      else fill(foot, next && h("button", { type: "button", onclick: more }, `Load ${PAGE} more`));
    } catch (error) {
      if (asked === asking) fill(foot, failure(error, more));
    }
  }

  function row(found) {
    const what = words(found.resembles ?? found.pattern);
    const name = `Open ${what}, ${count(found.queries)} queries, ${moment(found.last_seen)}`;
    return h(
      "tr",
      { onclick: () => open(found.id) },
      h("td", {}, h("time", { datetime: found.last_seen, title: moment(found.last_seen) }, ago(found.last_seen))),
      h("td", {}, h("button", { type: "button", "aria-label": name }, what)),
      h("td", { class: "number" }, count(found.queries)),
      h("td", {}, Object.keys(found.keys).join(", ")),
      h("td", { class: "number" }, count(found.label_flips)),
      h("td", { class: "number" }, pValue(found.lowest_p_value)),
    );
  }

  async function open(id) {
    const asked = (opening = {});
    detail.hidden = false;
    element.classList.add("with-detail");
    fill(detail, loading("Reading the case file"));
    try {
      const found = await api.campaign(id);
      if (asked === opening) fill(detail, file(found));
    } catch (error) {
      if (asked === opening) fill(detail, closing(), failure(error, () => open(id)));
    }
  }

  function closing() {
    const close = () => {
      opening = null;
      detail.hidden = true;
      element.classList.remove("with-detail");
    };
    return h("button", { type: "button", onclick: close }, "Close");
  }

  function file(found) {
    const facts = {
      Model: found.model,
      "First seen": moment(found.first_seen),
      "Last seen": moment(found.last_seen),
      Queries: `${count(found.queries)}, ${count(found.different)} different, ${count(found.flagged)} flagged`,
      Labels: share(found.labels),
      Keys: share(found.keys),
      ...(found.took_part ? { "Took part": share(found.took_part) } : {}),
      "Lowest p-value": pValue(found.lowest_p_value),
      "Local dimension": decimal(found.dimension, 1),
      "Median step": found.step === null ? "–" : `${decimal(found.step, 1)} of 255`,
      "Known after": found.known_after === null ? "–" : `${count(found.known_after)} queries`,
    };
    return [
      h("h2", {}, words(found.resembles ?? found.pattern)),
      closing(),
      h("dl", {}, Object.entries(facts).map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])),
      h("h3", {}, "Path"),
      h("ol", {}, found.path.map((step) => h("li", {}, picture(found, step), ` ${said(step)}`))),
    ];
  }

  function picture(found, step) {
    if (!found.pictured.includes(step.request)) return null;
    const src = api.pictureAddress(step.request, "input");
    const alt = `Open query ${count(step.number)} among the flagged inputs`;
    const image = h("img", { class: "pixels", src, alt, width: 40, height: 40, loading: "lazy" });
    return h("a", { href: `#/events?id=${encodeURIComponent(step.request)}` }, image);
  }
}

const said = (step) =>
  `query ${count(step.number)}: ${step.label}, p ${pValue(step.p_value)}${step.flagged ? ", flagged" : ""}`;

const SHARES = 20;

const share = (counts) => {
  const sorted = Object.entries(counts).sort((a, b) => b[1] - a[1]);
  const shown = sorted.slice(0, SHARES).map(([name, n]) => `${name} (${count(n)})`);
  const more = sorted.length - shown.length;
  return [...shown, ...(more > 0 ? [`${count(more)} more`] : [])].join(", ");
};
