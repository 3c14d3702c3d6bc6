// Votes of masks: the mask under which another label leads the served one most, in words and on the image.
import { h } from "../dom.js";
import { decimal, pValue } from "../format.js";
import { votesMap } from "./certificate.js";

/** `votes` of a verdict on the served `label`; `pixels` is the picture that the network saw ({ height, width, data }), or null. */
export function votesBody(votes, label, pixels) {
  const [top, left, height, width] = votes.box;
  const where = `rows ${top + 1} to ${top + height}, columns ${left + 1} to ${left + width}`;
  const size = `${votes.patch} × ${votes.patch} pixels`;
  const lost = votes.objection > 0;
  const text = votes.by === "small_field" ? bySmallField(votes, label, where, size) : lost
    ? `With ${where} hidden the answer is “${votes.label}” and no longer “${label}”: it leads by ${decimal(votes.objection)} of probability. p ${pValue(votes.p_value)}: that share of benign images lose their label so surely.`
    : `No mask changes the label “${label}”. p ${pValue(votes.p_value)}. One of the masks hides any patch of up to ${size}, whatever it holds.`;
  if (!lost || !pixels || votes.whole) return [h("p", { class: "prose" }, text)];
  const flip = { top, left, height, width, index: votes.index };
  const picture = `data:image/png;base64,${pixels.data}`;
  return [
    h("p", { class: "prose" }, text),
    h("div", { class: "votes" }, votesMap([], [flip], { index: null, picture, size: pixels, of: 1 })),
  ];
}

function bySmallField({ objection, label: other, p_value, whole }, label, where, size) {
  const p = `p ${pValue(p_value)}`;
  if (whole) {
    return objection > 0
      ? `For the whole image the network of small fields answers “${other}” and not “${label}”: it leads by ${decimal(objection)} of probability. ${p}: that share of benign images meet so sure an objection.`
      : `For the whole image the network of small fields answers “${label}”, too, by ${decimal(-objection)} of probability before “${other}”. ${p}: that share of benign images meet so sure an objection.`;
  }
  return objection > 0
    ? `Without its cells that see ${where} the network of small fields answers “${other}” and not “${label}”: it leads by ${decimal(objection)} of probability. ${p}: that share of benign images meet so sure an objection.`
    : `The network of small fields answers “${label}”, too, whichever of its cells a patch of up to ${size} could touch are left out. ${p}.`;
}
