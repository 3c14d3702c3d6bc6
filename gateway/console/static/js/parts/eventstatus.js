// How the list stays up to date, and how many events there are.
import { eventStats } from "../api.js";
import { fill, h } from "../dom.js";
import { count, percent } from "../format.js";
import { query } from "./filters.js";
import { tag } from "./notices.js";

const STATES = {
  live: ["Live", "ok"],
  polling: ["Polling every 5 s", "plain"],
  offline: ["Connection lost, trying again", "warn"],
};

export function liveState() {
  const element = h("span", { class: "live-state", role: "status" });
  let shown = null;
  return { element, draw };

  function draw(name) {
    if (name === shown) return;
    shown = name;
    const [text, tone] = STATES[name];
    fill(element, tag(text, tone, "dot"));
  }
}

export function eventSummary() {
  const element = h("p", { class: "summary" });
  let latest = 0;
  return { element, draw };

  async function draw(filters) {
    const asked = (latest += 1);
    let parts = [];
    try {
      parts = counted(await eventStats(query(filters)), filters);
    } catch {
      // The list itself reports the error; it is useful without counts.
    }
    if (asked === latest)
      fill(
        element,
        parts.map((part) => h("span", {}, part)),
      );
  }
}

function counted({ events, by_review: reviews, sample }, filters) {
  const parts = [
    `${count(events)} in the trail`,
    `${count(reviews.none)} unreviewed`,
    `${count(reviews.confirmed)} confirmed`,
    `${count(reviews.false_positive)} false positives`,
  ];
  // Of flagged events alone the share would always be whole.
  if (filters.kind === "all" && sample.flagged_share !== null)
    parts.push(`${percent(sample.flagged_share)} of sampled traffic flagged`);
  return parts;
}
