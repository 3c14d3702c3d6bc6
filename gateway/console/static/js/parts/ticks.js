// Names beside the bars of a chart: how they are broken into lines.

/** Below this width of a chart in pixels names are broken sooner; css/views.css has the same number. */
export const NARROW = 520;
/** Characters of a line. */
export const NARROW_TICK = 16;
export const WIDE_TICK = 34;
const MOST = 4;

/** `text` in at most four lines of about `width` characters, broken after spaces, dots and dashes. */
export function linesOf(text, width) {
  const lines = [""];
  for (const piece of String(text).split(/(?<=[\s._:-])/)) {
    if (lines.at(-1) && `${lines.at(-1)}${piece}`.trimEnd().length > width) lines.push(piece);
    else lines[lines.length - 1] += piece;
  }
  const kept = lines.slice(0, MOST).map((line) => line.trimEnd());
  return kept.map((line) => (line.length > width + 4 ? `${line.slice(0, width + 3)}…` : line));
}
