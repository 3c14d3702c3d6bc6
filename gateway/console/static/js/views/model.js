// Model: what a product owner asks of a served model, answered from its robustness card.
import { fill, h } from "../dom.js";
import * as api from "../api.js";
import { load, state } from "../state.js";
import { cardSections, provenance } from "../parts/card.js";
import { headline } from "../parts/headline.js";
import { manifestSection } from "../parts/manifest.js";
import { empty, failure, loading } from "../parts/notices.js";
import { plain } from "../parts/plain.js";
import { titlesOf } from "../parts/titles.js";

export function modelView() {
  const element = h("div", { class: "model" });
  let drawn = null;
  return { element, show: draw, hide: () => (drawn = null) };

  async function draw() {
    const name = state.model?.name;
    if (!name || name === drawn) return;
    drawn = name;
    fill(element, loading("Reading manifest and card"));
    try {
      const model = await api.model(name);
      if (drawn === name) fill(element, content(model));
      // Another version was made active since the console was opened.
      if (model.version !== state.model?.version) await load();
    } catch (error) {
      if (drawn !== name) return;
      drawn = null;
      fill(element, failure(error, draw));
    }
  }
}

function content(model) {
  const { manifest, card } = model;
  const titles = card && titlesOf(card);
  return [
    h(
      "header",
      { class: "panel model-head" },
      h("h1", {}, model.name, h("span", { class: "version" }, model.version)),
      h("p", { class: "prose" }, model.description),
      card && provenance(card),
      reportLink(model),
      card && plain(card),
      card && h("h2", { class: "visually-hidden" }, "Five figures"),
      card && headline(card, model.alpha, titles),
    ),
    card ? cardSections(card, model.alpha, titles) : noCard(model),
    manifest && manifestSection(model),
  ];
}

function reportLink({ name, manifest }) {
  if (!manifest?.files["report.html"]) return null;
  return h(
    "p",
    {},
    h("a", { href: api.reportAddress(name), target: "_blank", rel: "noopener" }, "Full report with pictures (new tab)"),
  );
}

function noCard({ manifest }) {
  if (!manifest) return empty("Not for this key", "Only keys at disclosure full see the manifest and the robustness card.");
  return empty("No card", "This bundle was not evaluated: nothing is known of its robustness.");
}
