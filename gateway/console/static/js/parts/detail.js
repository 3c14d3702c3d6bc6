// One event: its pictures, the evidence for the flag, and its review.
import { eventPictures } from "./eventpictures.js";
import { evidenceTable, layerBars } from "./evidence.js";
import { kindTag, reviewTag } from "./eventtags.js";
import { empty, failure } from "./notices.js";
import { pScale } from "./scale.js";
import { manifestOf } from "./scoretitles.js";
import { answers, explainNeutralization, explainPool, kindOfAnomaly, verdictBanner } from "./verdict.js";
import { fill, h, icon } from "../dom.js";
import { moment, percent } from "../format.js";
import { detailOf } from "../state.js";

/** `onReview(event, change)` resolves to null or the error; `onClose()`. */
export function detailPanel({ onReview, onClose }) {
  const element = h("aside", { class: "panel detail", "aria-label": "Selected input" });
  const title = h("h2", { tabindex: "-1" });
  const reviewing = h("div", { class: "reviewing" });
  const trouble = h("div", {});
  const note = h("textarea", { id: "note", rows: 2, maxlength: 1000, placeholder: "What is it? Why?" });
  const save = h("button", { type: "button", class: "quiet", onclick: () => send({ note: note.value }) }, "Save note");
  let shown = null;
  // The note as it was last read or saved: what differs from it is being written here.
  let kept = "";
  draw(null);
  return { element, draw, update, act, focusIfCovering };

  function draw(event) {
    if (event && shown?.id === event.id) return;
    shown = event;
    if (!event) {
      fill(element, empty("No input selected", "Select one to see why it was flagged and to review it."), keys());
      return;
    }
    fill(trouble);
    note.value = kept = event.note;
    fill(title, event.before.label);
    const back = h("button", { type: "button", class: "quiet back", onclick: onClose }, icon("cross"), "Close");
    fill(element, h("header", { class: "detail-head" }, title, back), reviewing, trouble, body(event), keys());
    drawReview();
    element.scrollTop = 0;
  }

  /** The event after a review: the rest of the panel stays as it is. */
  function update(event) {
    shown = event;
    drawReview();
  }

  /** On a narrow screen the panel takes the place of the list. */
  function focusIfCovering() {
    if (matchMedia("(max-width: 1099px)").matches) {
      title.focus({ preventScroll: true });
      window.scrollTo(0, 0);
    }
  }

  function drawReview() {
    const { review, reviewer, reviewed_at: at } = shown;
    const focused = reviewing.contains(document.activeElement) ? document.activeElement : null;
    const button = (verdict, text, key, symbol) =>
      h(
        "button",
        {
          type: "button",
          "data-verdict": verdict,
          "aria-pressed": String(review === verdict),
          "aria-keyshortcuts": key,
          onclick: () => act(verdict),
        },
        icon(symbol),
        text,
        h("kbd", { "aria-hidden": "true" }, key),
      );
    fill(
      reviewing,
      h(
        "p",
        { class: "review-state" },
        kindTag(shown.kind),
        reviewTag(review),
        at && h("span", { class: "hint" }, `${reviewer ? `by ${reviewer}, ` : ""}${moment(at)}`),
      ),
      h(
        "div",
        { class: "review-buttons", role: "group", "aria-label": "Review" },
        button("confirmed", "Confirm attack", "c", "check"),
        button("false_positive", "False positive", "f", "cross"),
      ),
      h("label", { for: "note" }, "Note"),
      note,
      h("div", { class: "note-save" }, save, h("span", { class: "hint" }, "Pressing a review again removes it.")),
    );
    if (focused === note || focused === save) focused.focus();
    else if (focused) reviewing.querySelector(`[data-verdict="${focused.dataset.verdict}"]`)?.focus();
  }

  function act(verdict) {
    const review = shown.review === verdict ? null : verdict;
    // A note that nobody wrote here stays as another reviewer may have left it.
    send(note.value === kept ? { review } : { review, note: note.value });
  }

  async function send(change) {
    const event = shown;
    fill(trouble);
    const error = await onReview(event, change);
    if (shown?.id !== event.id) return;
    if (!error) {
      if (note.value === kept) note.value = shown.note;
      kept = shown.note;
    } else
      fill(
        trouble,
        failure({ ...error, message: `The review was not saved. ${error.message}` }, () => send(change)),
      );
  }

  function keys() {
    const pairs = [
      ["j", "next"],
      ["k", "previous"],
      ["c", "confirm"],
      ["f", "false positive"],
      ["Esc", "close"],
    ];
    return h(
      "p",
      { class: "keys" },
      pairs.map(([key, what]) => h("span", {}, h("kbd", {}, key), ` ${what}`)),
    );
  }
}

function body(event) {
  const { before, after, neutralization: done, pooled } = event;
  const layers = h("div", {});
  const pictures = h("div", {});
  const evidence = h("div", {});
  drawLayers(layers, event);
  drawNamed(pictures, evidence, event);
  return [
    verdictBanner(event, { level: "h3" }),
    pictures,
    h("h3", {}, "Answers"),
    answers([
      { title: "As it came", prediction: before, served: !event.blocked && !done?.served && !pooled },
      after && {
        title: "Neutralised",
        prediction: after,
        served: !event.blocked && done.served,
        remark: done.changed ? "changed" : "unchanged",
      },
      pooled && { title: "Pool of all networks", prediction: pooled, served: true, remark: "changed" },
    ]),
    h(
      "p",
      { class: "prose" },
      event.blocked
        ? "The policy “block” refused this input: no answer was given."
        : explainNeutralization(done && { ...done, applied: true }, event.action, Boolean(pooled)),
    ),
    pooled && h("p", { class: "prose" }, explainPool(null)),
    event.p_value !== null && [h("h3", {}, "How unusual"), pScale(event)],
    event.anomaly && [h("h3", {}, "Kind of anomaly"), kindOfAnomaly({ ...event, kind: event.anomaly })],
    h("h3", {}, "Evidence by score"),
    evidence,
    layers,
    h("h3", {}, "Record"),
    facts(event),
  ];
}

/** What the manifest has titles for; drawn once that is known. */
async function drawNamed(pictures, evidence, event) {
  const manifest = await manifestOf(event.model, event.version);
  const rows = Object.entries(event.evidence).map(([name, p_value]) => ({ name, p_value }));
  fill(pictures, eventPictures(event, manifest));
  fill(evidence, evidenceTable(rows, manifest));
}

async function drawLayers(holder, event) {
  const known = Object.entries(event.layers).filter(([, deviation]) => deviation !== null);
  if (!known.length) return;
  let band = {};
  try {
    const model = await detailOf(event.model, event.version);
    if (model.version === event.version) band = model.layer_band ?? {};
  } catch {
    // The model is no longer served: bars without their band.
  }
  fill(
    holder,
    h("h3", {}, "Deviation by layer"),
    layerBars(known.map(([name, deviation]) => ({ name, deviation, benign_95: band[name] }))),
  );
}

function facts(event) {
  const list = [
    ["Time", moment(event.time)],
    ["Model", `${event.model} ${event.version}`],
    ["Policy", event.action],
    ["Caller's key", event.caller ?? "none"],
    event.image_sha256 && ["SHA-256 of what was sent", h("code", {}, event.image_sha256)],
    ["Request", h("code", {}, event.id)],
    event.sampled && ["Drawn at random", `with probability ${percent(event.sample_probability, 2)}`],
  ];
  return h(
    "dl",
    { class: "facts" },
    list.filter(Boolean).map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))),
  );
}
