// The gateway's answer to one image: picture, verdict, evidence, facts.
import { address } from "../api.js";
import { h } from "../dom.js";
import { bytes, milliseconds, percent } from "../format.js";
import { may, state } from "../state.js";
import { certificateBody } from "./certificate.js";
import { disclosure, quoted } from "./code.js";
import { evidenceTable, layerBars } from "./evidence.js";
import { empty } from "./notices.js";
import { pScale, shareBar } from "./scale.js";
import { answers, explainNeutralization, explainPool, kindOfAnomaly, verdictBanner } from "./verdict.js";
import { viewer } from "./viewer.js";
import { votesBody } from "./votes.js";

/** `image` describes its source: { name, truth?, size, type, command(key) }; `manifest` may be null. */
export function decision(answer, image, manifest) {
  const { verdict, neutralization } = answer;
  return h(
    "article",
    { class: "decision" },
    h(
      "div",
      { class: "column picture" },
      pictures(answer, image, manifest),
      answer.top && panel("Most probable classes", ranking(answer.top)),
      source(answer, image),
    ),
    h(
      "div",
      { class: "column findings" },
      verdict && verdictBanner(verdict, { more: (verdict.flagged || neutralization.changed || isPooled(answer)) && reviewLink(answer.id) }),
      panel(
        "Answers",
        answers(steps(answer)),
        verdict && h("p", { class: "prose" }, explainNeutralization(neutralization, verdict.action, isPooled(answer))),
        isPooled(answer) && h("p", { class: "prose" }, explainPool(answer.pool)),
      ),
      verdict?.votes && panel("Votes of masks", votesBody(verdict.votes, answer.prediction.label, seenPixels(answer))),
      answer.certificate && panel("Certificate against a patch", certificateBody(answer.certificate, seen(answer))),
      verdict?.p_cutoff !== undefined && panel("How unusual", pScale(verdict)),
      verdict?.kind && panel("Kind of anomaly", kindOfAnomaly(verdict)),
      verdict?.evidence?.length > 0 && panel("Evidence by score", evidenceTable(verdict.evidence, manifest)),
      verdict?.layers?.length > 0 && panel("Deviation by layer", layerBars(verdict.layers)),
      h(
        "div",
        { class: "disclosures" },
        disclosure("The same request with curl", () => command(answer, image)),
        disclosure("Raw answer (JSON)", () => JSON.stringify(shortened(answer), null, 1)),
      ),
    ),
  );
}

/** The answers up to the served one; a caller below disclosure `full` gets only the served one. */
function steps({ prediction, neutralization: done, pool, explanation }) {
  const companion = explanation?.companion;
  const first = done?.before ?? pool?.before;
  if (!first) return [{ title: "Answer", prediction, served: true }, companion && opinion(companion)];
  return [
    { title: "As it came", prediction: first, served: !done?.served && !pool },
    done?.before && {
      title: "Neutralised",
      prediction: done.after,
      served: done.served,
      remark: done.changed ? "changed" : "unchanged",
    },
    companion && opinion(companion),
    pool && { title: "Pool of all networks", prediction, served: true, remark: "changed" },
  ];
}

/** Whether the answer is the pool's; callers below disclosure `full` see that alone. */
const isPooled = ({ pool, pooled }) => Boolean(pool ?? pooled);

const opinion = (companion) => ({
  title: "Companion",
  prediction: companion,
  remark: companion.agrees ? "agrees" : "disagrees",
});

const panel = (title, ...content) => h("section", { class: "panel" }, h("h3", {}, title), content);

const data = (picture) => (picture ? `data:image/png;base64,${picture.data}` : null);
const seenPixels = ({ explanation }) => explanation?.input_pixels ?? null;
const seen = (answer) => data(seenPixels(answer));

function pictures(answer, image, manifest) {
  const { explanation, neutralization } = answer;
  if (!explanation) return empty("No pictures", "This key sees answers, but no explanations.");
  const sources = {
    input: data(explanation.input_pixels) ?? data(explanation.saliency),
    saliency: data(explanation.saliency),
    roi: data(explanation.roi),
    roa: data(explanation.roa),
    mask: data(explanation.neutral_mask),
    neutral: data(explanation.neutral_pixels),
  };
  const description = `${image.name} as the network saw it; answered as ${answer.prediction.label}`;
  return viewer(sources, { description, unsuspected: !neutralization.applied, manifest });
}

function source(answer, image) {
  const size = answer.explanation?.saliency;
  const facts = [
    ["Image", image.name],
    image.truth && ["Recorded truth", image.truth],
    ["Sent", bytes(image.size)],
    size && ["Seen by the network", `${size.width} × ${size.height} pixels`],
    answer.explanation && [
      "Saliency explains",
      `${answer.explanation.label}, on the ${answer.explanation.pixels === "neutralized" ? "neutralised image" : "image as it came"}`,
    ],
    ["Model", `${answer.model.name} ${answer.model.version ?? ""}`],
    answer.verdict && ["Policy", answer.verdict.action],
    answer.timing_ms && [
      "Time",
      h("span", {}, milliseconds(answer.timing_ms.total), h("span", { class: "hint" }, timing(answer.timing_ms))),
    ],
    ["Request", h("code", {}, answer.id)],
  ];
  return h(
    "dl",
    { class: "facts" },
    facts.filter(Boolean).map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))),
  );
}

const timing = ({ decode, queue, engine }) =>
  `decode ${milliseconds(decode)}, queue ${milliseconds(queue)}, engine ${milliseconds(engine)}`;

function ranking(top) {
  return h(
    "ol",
    { class: "ranking" },
    top.map(({ label, probability: p }) =>
      h("li", {}, h("span", { class: "label" }, label), h("span", { class: "number" }, percent(p)), shareBar(p)),
    ),
  );
}

function command(answer, image) {
  const key = state.session?.key_id ? ' -H "Authorization: Bearer $PALISADE_KEY"' : "";
  const target = address(
    `v1/predict?explain=${answer.explanation ? "all" : "none"}&model=${encodeURIComponent(answer.model.name)}${answer.certificate ? "&certify=patch" : ""}`,
  );
  return `${image.command(key)} -H ${quoted(`Content-Type: ${image.type || "application/octet-stream"}`)} ${quoted(target)}`;
}

/** The answer with its pictures cut short: base64 is unreadable. */
function shortened(answer) {
  return JSON.parse(
    JSON.stringify(answer, (name, value) =>
      name === "data" && typeof value === "string" && value.length > 80
        ? `${value.slice(0, 40)}… (${value.length} characters)`
        : value,
    ),
  );
}

/** What was flagged or changed is in the audit trail, under the request's id. */
export function reviewLink(id) {
  if (!may("reviewer") || !id) return null;
  return h("a", { href: `#/events?id=${encodeURIComponent(id)}` }, "Review it among the flagged inputs");
}
