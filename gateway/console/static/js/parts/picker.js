// Choosing an image: drop, paste, pick a file, or take a sample of the model.
import { sampleAddress } from "../api.js";
import { fill, h, icon } from "../dom.js";
import { words } from "../format.js";

const KINDS = ["clean", "attacked", "patched"];
const KIND_HINTS = { clean: "as photographed", attacked: "small changes everywhere", patched: "a patch pasted in" };

/** `onFile(file)` and `onSample(sample)` are called with what was chosen. */
export function picker({ onFile, onSample }) {
  const input = h("input", {
    type: "file",
    id: "file",
    class: "visually-hidden",
    accept: "image/png,image/jpeg,image/webp,image/bmp",
    onchange: () => {
      if (input.files[0]) onFile(input.files[0]);
      input.value = "";
    },
  });
  const zone = h(
    "label",
    { class: "drop", for: "file" },
    icon("upload"),
    h(
      "span",
      {},
      h("b", {}, "Choose an image"),
      h("span", { class: "hint" }, "or drop or paste one; PNG, JPEG, WebP, BMP"),
    ),
  );
  const shelf = h("div", { class: "shelf" });
  accept(zone, onFile);
  return {
    element: h("div", { class: "picker" }, input, zone, shelf),
    offer: (model, samples) => fill(shelf, offered(model, samples, onSample)),
    mark,
  };

  function mark(file) {
    for (const button of shelf.querySelectorAll("button"))
      button.setAttribute("aria-pressed", String(button.dataset.file === file));
  }
}

function accept(zone, onFile) {
  const over = (event) => {
    if (!event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    zone.classList.toggle("over", event.type === "dragover");
  };
  for (const type of ["dragover", "dragleave"])
    document.addEventListener(type, (event) => zone.isConnected && over(event));
  document.addEventListener("drop", (event) => {
    if (!zone.isConnected) return;
    over(event);
    const [file] = event.dataTransfer?.files ?? [];
    if (file) onFile(file);
  });
  document.addEventListener("paste", (event) => {
    const file = [...(event.clipboardData?.files ?? [])].find((f) => f.type.startsWith("image/"));
    if (file && zone.isConnected) onFile(file);
  });
}

function offered(model, samples, onSample) {
  if (!samples.length) return h("p", { class: "hint" }, "This model's bundle ships no samples.");
  const kinds = [...new Set([...KINDS, ...samples.map((sample) => sample.kind)])];
  return kinds.map((kind) => {
    const own = samples.filter((sample) => sample.kind === kind);
    if (!own.length) return null;
    const id = `samples-${kind}`;
    return h(
      "section",
      { "aria-labelledby": id },
      h("h3", { id }, words(kind), h("span", { class: "hint" }, KIND_HINTS[kind])),
      h(
        "div",
        { class: "thumbs" },
        own.map((sample, i) => thumb(model, sample, i + 1, onSample)),
      ),
    );
  });
}

function thumb(model, sample, number, onSample) {
  const name = `${words(sample.kind)} sample ${number}${sample.truth ? `: ${sample.truth}` : ""}`;
  return h(
    "button",
    {
      type: "button",
      "aria-pressed": "false",
      "aria-label": name,
      title: name,
      "data-file": sample.file,
      onclick: () => onSample(sample),
    },
    h("img", {
      class: "pixels",
      src: sampleAddress(model, sample.file),
      alt: "",
      width: 48,
      height: 48,
      loading: "lazy",
    }),
  );
}
