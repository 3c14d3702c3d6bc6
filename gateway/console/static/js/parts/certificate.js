// A certificate against patches: the level in words, and which masks change the label.
import { h, svg } from "../dom.js";
import { percent } from "../format.js";

const LEVELS = {
  proved: "Proved",
  agreed: "Agreed",
  none: "No certificate",
};

function explain({ level, by, label, patch, masks }) {
  const size = `${patch.side} × ${patch.side} pixels (${percent(patch.share, 1)} of the image)`;
  if (by === "small_field" && level !== "none")
    return `The network of small fields answers “${label}”, too, without any ${level === "proved" ? "two " : ""}of the ${masks} windows of its cells that a patch of ${size} can touch${level === "proved" ? ". The image without such a patch gets this label from double masking, whatever the patch holds and wherever it lies" : ""}.`;
  if (by === "small_field")
    return `The network of small fields does not answer “${label}” without some of the ${masks} windows of its cells that a patch of ${size} can touch. That is no sign of an attack: many clean images have no certificate.`;
  if (level === "proved")
    return `The answer is “${label}” under each of ${masks} masks and under every two of them. The image without a patch of up to ${size} gets this label from double masking, whatever the patch holds and wherever it lies.`;
  if (level === "agreed")
    return `The answer is “${label}” under each of ${masks} masks. If a patch of up to ${size} is in the image, one of them hid all of it; under two masks the answer changes or was not tried.`;
  return `Under some of ${masks} masks the answer is not “${label}”, so that a patch of ${size} could have made it. That is no sign of an attack: many clean images have no certificate.`;
}

/** Level, sentence and picture; `picture` is the source of the image as the network saw it, or null. */
export function certificateBody(certificate, picture) {
  const { votes, level, index } = certificate;
  const flips = votes?.filter((vote) => vote.index !== null && vote.index !== index) ?? [];
  return [
    h("p", { class: `certificate-level ${level}` }, LEVELS[level]),
    h("p", { class: "prose" }, explain(certificate)),
    votes &&
      h(
        "div",
        { class: "votes" },
        votesMap(votes, flips, { index, picture, size: extent(votes), of: votes.length }),
        listing(flips),
      ),
  ];
}

const extent = (votes) => ({
  width: Math.max(...votes.map((vote) => vote.left + vote.width)),
  height: Math.max(...votes.map((vote) => vote.top + vote.height)),
});

/** The image, of `size`, with a ring where a mask kept label `index`, and the whole mask, numbered, where it changed it. */
export function votesMap(votes, flips, { index, picture, size: { width, height }, of }) {
  const ring = Math.max(width, height) / 40;
  return svg(
    "svg",
    {
      class: "votes-map",
      viewBox: `0 0 ${width} ${height}`,
      role: "img",
      "aria-label": `${flips.length} of ${of} masks change the label`,
    },
    picture && svg("image", { href: picture, width, height, preserveAspectRatio: "none" }),
    votes
      .filter((vote) => vote.index === index)
      .map((vote) => svg("circle", { class: "kept", cx: middle(vote).x, cy: middle(vote).y, r: ring })),
    flips.map((vote, i) => [
      svg("rect", { class: "halo", x: vote.left, y: vote.top, width: vote.width, height: vote.height }),
      svg("rect", { class: "flip", x: vote.left, y: vote.top, width: vote.width, height: vote.height }),
      flips.length > 1 && svg("text", { x: middle(vote).x, y: middle(vote).y, "font-size": 4 * ring }, i + 1),
    ]),
  );
}

const middle = ({ top, left, height, width }) => ({ x: left + width / 2, y: top + height / 2 });

function listing(flips) {
  if (flips.length === 0) return h("p", { class: "hint" }, "No mask of the first round changes the label.");
  return h(
    "ol",
    { class: "votes-list" },
    flips.map(({ label, top, left, height, width }) =>
      h(
        "li",
        {},
        h("span", { class: "label" }, label),
        h(
          "span",
          { class: "hint" },
          `rows ${top + 1} to ${top + height}, columns ${left + 1} to ${left + width} hidden`,
        ),
      ),
    ),
  );
}
