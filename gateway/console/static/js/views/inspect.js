// Inspect: the answer to one image, how anomalous the image is, and why.
import * as api from "../api.js";
import { announce } from "../announce.js";
import { fill, h } from "../dom.js";
import { state } from "../state.js";
import { quoted } from "../parts/code.js";
import { decision, reviewLink } from "../parts/decision.js";
import { lookOf } from "../parts/verdict.js";
import { empty, failure, loading } from "../parts/notices.js";
import { picker } from "../parts/picker.js";
import { manifestOf } from "../parts/scoretitles.js";

export function inspectView() {
  const choice = picker({ onFile, onSample });
  const certify = h("input", { type: "checkbox", id: "certify", onchange: () => last && inspect(last) });
  const certifying = h(
    "label",
    { class: "certify", for: "certify", hidden: true },
    certify,
    h("span", {}, "Certify against a patch"),
    h("span", { class: "hint" }, "hides places of the image in turn; takes longer"),
  );
  const result = h("div", { class: "result", "aria-busy": "false" });
  const element = h(
    "div",
    { class: "inspect" },
    h(
      "section",
      { class: "panel source", "aria-labelledby": "source-title" },
      h("h1", { id: "source-title" }, "Inspect an image"),
      choice.element,
      certifying,
    ),
    result,
  );
  let model = null;
  let running = null;
  let last = null;
  fill(result, welcome());
  return { element, show: offerSamples };

  async function offerSamples() {
    if (!state.model || state.model.name === model) return;
    model = state.model.name;
    // An answer of the model before would stand below the name of this one.
    running?.abort();
    running = last = null;
    settle();
    certifying.hidden = state.session.disclosure === "label";
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
    inspect({
      name: file.name,
      size: file.size,
      command: (key) => `curl -s${key} --data-binary @${quoted(file.name)}`,
      type: file.type,
      blob: async () => file,
    });
  }

  function onSample(sample) {
    choice.mark(sample.file);
    const from = model;
    const source = api.sampleAddress(from, sample.file);
    inspect({
      name: sample.file,
      truth: sample.truth,
      command: (key) => `curl -s${key} ${quoted(source)} | curl -s${key} --data-binary @-`,
      type: "image/png",
      blob: (signal) => api.sample(from, sample.file, signal),
    });
  }

  async function inspect(image) {
    last = image;
    running?.abort();
    const run = (running = new AbortController());
    result.setAttribute("aria-busy", "true");
    result.classList.add("waiting");
    if (!result.querySelector(".decision")) fill(result, loading("Running the defence"));
    try {
      const blob = await image.blob(run.signal);
      const explain = state.session.disclosure === "label" ? "none" : "all";
      const asked = certify.checked && !certifying.hidden ? "patch" : undefined;
      const answer = await api.predict(blob, { model, explain, certify: asked, signal: run.signal });
      const manifest = await manifestOf(answer.model.name, answer.model.version);
      if (run !== running) return;
      fill(result, decision(answer, { ...image, size: blob.size }, manifest));
      announce(spoken(answer));
    } catch (error) {
      if (error.name === "AbortError" || run !== running) return;
      const link = error.code === "blocked_by_policy" && reviewLink(error.requestId);
      fill(
        result,
        failure(error, () => inspect(image), link),
      );
    } finally {
      if (run === running) settle();
    }
  }

  function settle() {
    result.setAttribute("aria-busy", "false");
    result.classList.remove("waiting");
  }
}

function spoken({ verdict, prediction }) {
  const state = verdict ? `${{ flagged: "Flagged", suspect: "Suspect, not flagged", none: "Not flagged" }[lookOf(verdict)]}. ` : "";
  return `${state}Answer: ${prediction.label}.`;
}

const welcome = () =>
  empty(
    "Nothing inspected yet",
    "Choose an image or a sample. An attacked one shows what a flag looks like; a patched one also what neutralisation does.",
  );
