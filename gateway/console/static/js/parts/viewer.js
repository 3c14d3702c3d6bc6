// A picture as the network saw it, with layers to lay over it and one slider for their opacity.
import { fill, h } from "../dom.js";
import { heat, readMap, region, scaleGradient } from "./regions.js";
import { meaningOf, titleOf } from "./scoretitles.js";

// The viewer's settings outlive one image: a person who compares images wants the same layers on each.
const chosen = { saliency: false, roi: true, roa: true, mask: false, neutral: false };
let opacity = 80;

const NAMES = {
  saliency: "Saliency",
  roi: "Region of importance",
  roa: "Region of attack",
  mask: "Inpainted region",
  neutral: "Neutralised pixels",
};
const HINTS = {
  saliency: "what the answer depends on",
  roi: "where the class is seen",
  roa: "where a patch is likeliest",
  mask: "what was replaced",
  neutral: "the image after inpainting",
};

/**
 * `sources`: addresses of PNGs by name (input, saliency, roi, roa, mask, neutral), those that exist.
 * `unsuspected`: the region of attack is the likeliest place of a patch, but is not suspected.
 * `manifest`: the bundle's, whose localiser defines the region of attack; may be null.
 */
export function viewer(sources, { description, unsuspected = false, manifest = null }) {
  const stage = h("div", {
    class: "stage",
    role: "img",
    "aria-label": description,
    style: { "--overlay": opacity / 100 },
  });
  const base = h("img", { class: "pixels", src: sources.input, alt: "", draggable: "false" });
  base.addEventListener("load", () =>
    stage.style.setProperty("aspect-ratio", `${base.naturalWidth} / ${base.naturalHeight}`),
  );
  stage.append(base);
  const layers = Object.keys(NAMES).filter((name) => sources[name]);
  const holders = Object.fromEntries(layers.map((name) => [name, h("div", { class: "layer", hidden: !chosen[name] })]));
  // Pixels lie below maps, outlines above everything.
  for (const name of ["neutral", "saliency", "roi", "roa", "mask"]) if (holders[name]) stage.append(holders[name]);
  const controls = h("div", { class: "layer-controls" });
  const element = h(
    "figure",
    { class: `viewer ${unsuspected ? "unsuspected" : ""}` },
    h("div", { class: "viewer-body" }, stage, controls),
  );
  draw(sources, holders).then((drawn) =>
    fill(controls, toggles(layers, holders, drawn, { unsuspected, manifest }), slider(stage), legend()),
  );
  return element;

  function legend() {
    if (!sources.saliency) return null;
    return h(
      "p",
      { class: "scale-legend" },
      h("span", {}, "saliency: low"),
      h("span", { class: "ramp", "aria-hidden": "true", style: { background: scaleGradient } }),
      h("span", {}, "high"),
    );
  }
}

/** Fill the layers; returns by name whether there was anything to draw. */
async function draw(sources, holders) {
  const entries = Object.entries(holders).map(async ([name, holder]) => {
    try {
      const content = await layer(name, sources[name]);
      if (content) holder.append(content);
      return [name, content ? "drawn" : "empty"];
    } catch {
      return [name, "failed"];
    }
  });
  return Object.fromEntries(await Promise.all(entries));
}

async function layer(name, src) {
  if (name === "neutral") return h("img", { class: "pixels", src, alt: "", draggable: "false" });
  const map = await readMap(src);
  return name === "saliency" ? heat(map) : region(map, name);
}

function toggles(layers, holders, drawn, { unsuspected, manifest }) {
  const boxes = layers.map((name) => {
    const toggle = (event) => {
      chosen[name] = event.target.checked;
      holders[name].hidden = !chosen[name];
    };
    const usable = drawn[name] === "drawn";
    const hint =
      { empty: "none on this image", failed: "could not be read" }[drawn[name]] ??
      (name === "roa" ? attackHint(manifest, unsuspected) : HINTS[name]);
    return h(
      "label",
      { class: "toggle" },
      h("input", { type: "checkbox", name, checked: chosen[name], disabled: !usable, onchange: toggle }),
      h("span", { class: `swatch ${name}`, "aria-hidden": "true" }),
      h("span", {}, NAMES[name], h("span", { class: "hint" }, hint)),
    );
  });
  return h("fieldset", { class: "toggles" }, h("legend", {}, "Overlays"), boxes);
}

/** What the region of attack is, by the localiser that found it. */
function attackHint(manifest, unsuspected) {
  if (unsuspected) return "the likeliest place, not suspected";
  const name = manifest?.localiser;
  if (!name) return HINTS.roa;
  return `${meaningOf(manifest, name) ?? HINTS.roa} (${titleOf(manifest, name)})`;
}

function slider(stage) {
  const output = h("output", {}, `${opacity}%`);
  const set = (event) => {
    opacity = Number(event.target.value);
    stage.style.setProperty("--overlay", opacity / 100);
    output.textContent = `${opacity}%`;
  };
  return h(
    "label",
    { class: "slider" },
    h("span", {}, "Opacity"),
    h("input", {
      type: "range",
      min: 0,
      max: 100,
      step: 5,
      value: opacity,
      oninput: set,
      "aria-label": "Opacity of overlays",
    }),
    output,
  );
}
