// Inspect: one image, what is answered, how anomalous it is, and why.
import * as api from "../api.js";
import { announce } from "../announce.js";
import { fill, h } from "../dom.js";
import { bytes, milliseconds, percent } from "../format.js";
import { may, state, subscribe } from "../state.js";
import { disclosure, quoted } from "../parts/code.js";
import { evidenceTable, layerBars } from "../parts/evidence.js";
import { empty, failure, loading } from "../parts/notices.js";
import { picker } from "../parts/picker.js";
import { pScale, shareBar } from "../parts/scale.js";
import { answers, explainNeutralization, verdictBanner } from "../parts/verdict.js";
import { viewer } from "../parts/viewer.js";

export function inspectView() {
  const choice = picker({ onFile, onSample });
  const result = h("div", { class: "result", "aria-busy": "false" });
  const element = h(
    "div",
    { class: "inspect" },
    h("section", { class: "panel source", "aria-labelledby": "source-title" }, h("h1", { id: "source-title" }, "Inspect an image"), choice.element),
    result,
  );
  let model = null;
  let running = null;
  fill(result, welcome());
  subscribe(offerSamples);
  return { element, show: offerSamples };

  async function offerSamples() {
    if (!state.model || state.model.name === model) return;
    model = state.model.name;
    const asked = model;
    fill(result, welcome());
    choice.offer(model, []);
    try {
      const { samples } = await api.samples(asked);
      if (asked === model) choice.offer(asked, samples);
    } catch (error) {
      if (error.status === 401) failure(error);
    }
  }

  function onFile(file) {
    choice.mark(null);
    inspect({ name: file.name, size: file.size, command: `curl -s --data-binary @${quoted(file.name)}`, type: file.type, blob: async () => file });
  }

  function onSample(sample) {
    choice.mark(sample.file);
    const source = api.sampleAddress(model, sample.file);
    inspect({
      name: sample.file,
      truth: sample.truth,
      command: `curl -s ${quoted(source)} | curl -s --data-binary @-`,
      type: "image/png",
      blob: async () => (await fetch(source)).blob(),
    });
  }

  async function inspect(image) {
    running?.abort();
    const run = (running = new AbortController());
    result.setAttribute("aria-busy", "true");
    result.classList.add("waiting");
    if (!result.querySelector(".decision")) fill(result, loading("Running the defence"));
    try {
      const blob = await image.blob();
      const explain = state.session.disclosure === "label" ? "none" : "all";
      const answer = await api.predict(blob, { model, explain, signal: run.signal });
      if (run !== running) return;
      fill(result, decision(answer, { ...image, size: blob.size }));
      announce(spoken(answer));
    } catch (error) {
      if (error.name === "AbortError" || run !== running) return;
      fill(result, failure(error, () => inspect(image)));
    } finally {
      if (run === running) {
        result.setAttribute("aria-busy", "false");
        result.classList.remove("waiting");
      }
    }
  }
}

function spoken({ verdict, prediction }) {
  const state = verdict ? `${verdict.flagged ? "Flagged" : "Not flagged"}. ` : "";
  return `${state}Answer: ${prediction.label}.`;
}

const welcome = () => empty("Nothing inspected yet", "Choose an image or a sample. An attacked one shows what a flag looks like; a patched one also what neutralisation does.");

function decision(answer, image) {
  const { verdict, neutralization, explanation } = answer;
  return h(
    "article",
    { class: "decision" },
    h("div", { class: "column picture" }, pictures(answer, image), source(answer, image)),
    h(
      "div",
      { class: "column findings" },
      verdict && verdictBanner(verdict, { more: reviewLink(answer) }),
      panel("Answers", answers(steps(answer)), verdict && h("p", { class: "prose" }, explainNeutralization(neutralization, verdict.action))),
      verdict?.p_cutoff !== undefined && panel("How unusual", pScale(verdict)),
      verdict?.evidence?.length > 0 && panel("Evidence by score", evidenceTable(verdict.evidence)),
      verdict?.layers?.length > 0 && panel("Deviation by layer", layerBars(verdict.layers)),
      answer.top && panel("Most probable classes", ranking(answer.top)),
      h("div", { class: "disclosures" }, disclosure("The same request with curl", () => command(answer, image)), disclosure("Raw answer (JSON)", () => JSON.stringify(shortened(answer), null, 1))),
    ),
  );
}

/** What was flagged or changed is in the audit trail, under the request's id. */
function reviewLink({ id, verdict, neutralization }) {
  if (!may("reviewer") || !(verdict.flagged || neutralization.changed)) return null;
  return h("a", { href: `#/events?id=${encodeURIComponent(id)}` }, "Review it among the flagged inputs");
}

/** The answers on the way to the served one; a caller who sees little gets the served one alone. */
function steps({ prediction, neutralization: done, explanation }) {
  const companion = explanation?.companion;
  if (!done?.before) return [{ title: "Answer", prediction, served: true }, companion && opinion(companion)];
  return [
    { title: "As it came", prediction: done.before, served: !done.served },
    { title: "After neutralisation", prediction: done.after, served: done.served, remark: done.changed ? "changed" : "unchanged" },
    companion && opinion(companion),
  ];
}

const opinion = (companion) => ({ title: "Companion's opinion", prediction: companion, remark: companion.agrees ? "agrees" : "disagrees" });

const panel = (title, ...content) => h("section", { class: "panel" }, h("h3", {}, title), content);

function pictures(answer, image) {
  const { explanation, neutralization } = answer;
  if (!explanation) return empty("No pictures", "This key sees verdicts, but no explanations.");
  const data = (picture) => (picture ? `data:image/png;base64,${picture.data}` : null);
  const sources = {
    input: data(explanation.input_pixels) ?? data(explanation.saliency),
    saliency: data(explanation.saliency),
    roi: data(explanation.roi),
    roa: data(explanation.roa),
    mask: data(explanation.neutral_mask),
    neutral: data(explanation.neutral_pixels),
  };
  const description = `${image.name} as the network saw it; answered as ${answer.prediction.label}`;
  return viewer(sources, { description, unsuspected: !neutralization.applied });
}

function source(answer, image) {
  const size = answer.explanation?.saliency;
  const facts = [
    ["Image", image.name],
    image.truth && ["Recorded truth", image.truth],
    ["Sent", bytes(image.size)],
    size && ["Seen by the network", `${size.width} × ${size.height} pixels`],
    answer.explanation && ["Saliency explains", `${answer.explanation.label}, on the ${answer.explanation.pixels === "neutralized" ? "neutralised image" : "image as it came"}`],
    ["Model", `${answer.model.name} ${answer.model.version ?? ""}`],
    answer.verdict && ["Policy", answer.verdict.action],
    answer.timing_ms && ["Time", h("span", {}, milliseconds(answer.timing_ms.total), h("span", { class: "hint" }, timing(answer.timing_ms)))],
    ["Request", h("code", {}, answer.id)],
  ];
  return h("dl", { class: "facts" }, facts.filter(Boolean).map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
}

const timing = ({ decode, queue, engine }) => `decode ${milliseconds(decode)}, queue ${milliseconds(queue)}, engine ${milliseconds(engine)}`;

function ranking(top) {
  return h(
    "ol",
    { class: "ranking" },
    top.map(({ label, probability: p }) => h("li", {}, h("span", { class: "label" }, label), h("span", { class: "number" }, percent(p)), shareBar(p))),
  );
}

function command(answer, image) {
  const key = state.session?.key_id ? ' -H "Authorization: Bearer $PALISADE_KEY"' : "";
  const target = api.address(`v1/predict?explain=all&model=${encodeURIComponent(answer.model.name)}`);
  return `${image.command} -H ${quoted(`Content-Type: ${image.type || "application/octet-stream"}`)}${key} ${quoted(target)}`;
}

/** The answer with its pictures cut short: base64 helps no reader. */
function shortened(answer) {
  return JSON.parse(JSON.stringify(answer, (name, value) => (name === "data" && typeof value === "string" && value.length > 80 ? `${value.slice(0, 40)}… (${value.length} characters)` : value)));
}
