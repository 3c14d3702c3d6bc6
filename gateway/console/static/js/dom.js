// Elements without markup strings: text is always text, whatever a label or a note contains.

const SVG = "http://www.w3.org/2000/svg";

/** Element `tag` with attributes (`on*` are listeners, `style` an object, false and null are left out) and children. */
export function h(tag, attributes = {}, ...children) {
  return build(document.createElement(tag), attributes, children);
}

/** The same for SVG. */
export function svg(tag, attributes = {}, ...children) {
  return build(document.createElementNS(SVG, tag), attributes, children);
}

function build(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [key, v] of Object.entries(value)) element.style.setProperty(key, v);
    else if (name === "value") element.value = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  append(element, children);
  return element;
}

function append(element, children) {
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    element.append(child instanceof Node ? child : String(child));
  }
}

/** Replace the children of `element`. */
export function fill(element, ...children) {
  element.replaceChildren();
  append(element, children);
  return element;
}

/** A symbol of the sprite below; decoration, never the only carrier of meaning. */
export function icon(name) {
  return svg(
    "svg",
    { class: "icon", viewBox: "0 0 16 16", "aria-hidden": "true", focusable: "false" },
    ...PATHS[name].map((d) => svg("path", { d })),
  );
}

const PATHS = {
  flag: ["M3.5 14V2.5", "M3.5 3h9l-2 3 2 3h-9"],
  check: ["M3 8.5l3.2 3.2L13 4.8"],
  cross: ["M4 4l8 8", "M12 4l-8 8"],
  swap: ["M3 5.5h9.5", "M10 3l2.5 2.5L10 8", "M13 10.5H3.5", "M6 8l-2.5 2.5L6 13"],
  block: ["M8 2a6 6 0 1 0 0 12A6 6 0 0 0 8 2z", "M3.8 3.8l8.4 8.4"],
  dot: ["M8 5a3 3 0 1 0 0 6 3 3 0 0 0 0-6z"],
  upload: ["M8 10.5V3", "M5 5.8L8 2.8l3 3", "M2.5 10v3h11v-3"],
  copy: ["M5.5 5.5h8v8h-8z", "M10.5 5.5v-3h-8v8h3"],
  arrow: ["M2.5 8h10.5", "M9.5 4.5L13 8l-3.5 3.5"],
  person: ["M8 2.5a2.7 2.7 0 1 0 0 5.4 2.7 2.7 0 0 0 0-5.4z", "M2.8 13.8c.5-3 2.5-4.3 5.2-4.3s4.7 1.3 5.2 4.3"],
  theme: ["M8 2a6 6 0 1 0 0 12A6 6 0 0 0 8 2z", "M8 2v12", "M8 4.5c2.5 0 4 1.5 4 3.5s-1.5 3.5-4 3.5"],
  alert: ["M8 2.2l6.3 11.3H1.7z", "M8 6.5v3.2", "M8 11.5v.4"],
};
