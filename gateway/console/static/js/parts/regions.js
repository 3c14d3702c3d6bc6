// Maps of the gateway (grey PNGs) as layers over a picture: saliency in colour, regions as outlined patterns.
import { svg } from "../dom.js";

// The gateway's own scale (gateway/answers/colours.py): lightness rises evenly, also in grey and for colour-blind readers.
const STOPS = ["#160040", "#40005b", "#730064", "#a6005b", "#d22c41", "#ef5f09", "#fb9500", "#f9c948", "#f3f697"];
export const scaleGradient = `linear-gradient(to right, ${STOPS.join(", ")})`;

const rgb = STOPS.map((hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)));

function colour(value) {
  const place = value * (rgb.length - 1);
  const low = Math.min(Math.floor(place), rgb.length - 2);
  return rgb[low].map((c, i) => c + (rgb[low + 1][i] - c) * (place - low));
}

/** Values in [0, 1] of a grey PNG, row by row. */
export async function readMap(src) {
  const image = new Image();
  image.src = src;
  await image.decode();
  const { naturalWidth: width, naturalHeight: height } = image;
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  const { data } = context.getImageData(0, 0, width, height);
  return { width, height, values: Float32Array.from({ length: width * height }, (_, i) => data[4 * i] / 255) };
}

/** A canvas of the map in colour; what matters little lets the picture through. */
export function heat({ width, height, values }) {
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const pixels = new ImageData(width, height);
  values.forEach((value, i) => pixels.data.set([...colour(value), 255 * (0.25 + 0.75 * value)], 4 * i));
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return canvas;
}

const PATTERNS = {
  roi: (unit) => [svg("circle", { cx: unit / 2, cy: unit / 2, r: unit / 6 })],
  roa: (unit) => [
    svg("path", {
      d: `M0 ${unit}L${unit} 0M${-unit / 4} ${unit / 4}L${unit / 4} ${-unit / 4}M${unit * 0.75} ${unit * 1.25}L${unit * 1.25} ${unit * 0.75}`,
    }),
  ],
  mask: (unit) => [
    svg("path", {
      d: `M0 0L${unit} ${unit}M${unit * 0.75} ${-unit / 4}L${unit * 1.25} ${unit / 4}M${-unit / 4} ${unit * 0.75}L${unit / 4} ${unit * 1.25}`,
    }),
  ],
};
let patterns = 0;

/** The region above 0.5 as a pattern with an outline; null when it is empty. Kinds: roi, roa, mask. */
export function region({ width, height, values }, kind) {
  const inside = (x, y) => x >= 0 && y >= 0 && x < width && y < height && values[y * width + x] > 0.5;
  let cells = "";
  let edges = "";
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      if (!inside(x, y)) continue;
      cells += `M${x} ${y}h1v1h-1z`;
      if (!inside(x, y - 1)) edges += `M${x} ${y}h1`;
      if (!inside(x, y + 1)) edges += `M${x} ${y + 1}h1`;
      if (!inside(x - 1, y)) edges += `M${x} ${y}v1`;
      if (!inside(x + 1, y)) edges += `M${x + 1} ${y}v1`;
    }
  }
  if (!cells) return null;
  const id = `pattern-${(patterns += 1)}`;
  const unit = Math.max(width, height) / 20;
  return svg(
    "svg",
    { class: `region ${kind}`, viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", "aria-hidden": "true" },
    svg(
      "defs",
      {},
      svg("pattern", { id, width: unit, height: unit, patternUnits: "userSpaceOnUse" }, PATTERNS[kind](unit)),
    ),
    svg("path", { class: "fill", d: cells, fill: `url(#${id})` }),
    svg("path", { class: "halo", d: edges }),
    svg("path", { class: "edge", d: edges }),
  );
}
