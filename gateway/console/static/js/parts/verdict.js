// A verdict in words. A flag is evidence, never proof, and the words state that.
import { h, icon } from "../dom.js";
import { fine, pValue, percent, probability } from "../format.js";
import { tag } from "./notices.js";
import { shareBar } from "./scale.js";

/** The sentence under the verdict. */
export function explainVerdict(verdict) {
  const { flagged, p_value: p, alpha, p_cutoff: cutoff, stage } = verdict;
  if (flagged) {
    const threshold =
      cutoff === undefined
        ? ""
        : ` The threshold, p ≤ ${pValue(cutoff)}, is set to flag at most ${percent(alpha, alpha < 0.01 ? 1 : 0)} of them.`;
    return `More anomalous than ${fine(1 - p)} of benign images.${threshold} Evidence, not proof.`;
  }
  if (verdict.level === "suspect") {
    const levels =
      cutoff === undefined
        ? ""
        : ` At most ${percent(verdict.suspect_alpha)} of them are (p ≤ ${pValue(verdict.suspect_cutoff)}); the threshold of a flag is p ≤ ${pValue(cutoff)}.`;
    return `More anomalous than ${fine(1 - p)} of benign images: worth a look, but not flagged.${levels}`;
  }
  // What the screen lets through is kept without a p-value.
  if (p === null)
    return "The screen found it plainly benign, so that no layers were compared. That nothing was flagged does not prove that the image is clean.";
  const screened = stage === "screen" ? " The screen found it plainly benign, so that no layers were compared." : "";
  const above = cutoff === undefined ? "" : ` That is above the threshold, p ≤ ${pValue(cutoff)}.`;
  return `${fine(p)} of benign images look at least as unusual.${above}${screened} That nothing was flagged does not prove that the image is clean.`;
}

const KINDS = {
  ordinary: ["Neither unfamiliar nor unstable.", "plain", "ordinary"],
  unfamiliar: ["Unlike the training data: look at the camera, and do not rely on the answer.", "warn", "unfamiliar"],
  attacked: ["Like the training data, but as unstable as attacked images are: look at the caller.", "alert", "attacked"],
  both: ["Unlike the training data, and as unstable as attacked images are.", "alert", "unfamiliar and attacked"],
};

/** The kind of anomaly with its two p-values, where the bundle tells kinds apart; null otherwise. */
export function kindOfAnomaly({ kind, p_unfamiliar: unfamiliar, p_attacked: attacked }) {
  if (!KINDS[kind]) return null;
  const [sentence, tone, name] = KINDS[kind];
  const values =
    unfamiliar === undefined || unfamiliar === null
      ? ""
      : ` p of being unfamiliar ${pValue(unfamiliar)}, of being attacked ${pValue(attacked)}.`;
  return h("p", { class: "prose" }, tag(name, tone), ` ${sentence}${values}`);
}

/** What neutralisation did, from { applied, served, region, area, before, after, changed, p_value }. */
export function explainNeutralization(done, action, pooled = false) {
  if (!done?.applied)
    return `Nothing was suspicious enough to be inpainted${pooled ? "." : ": the answer is that of the image as it came."}`;
  if (done.region === undefined)
    return `A region was inpainted and the network asked again. The answer ${done.changed ? "changed" : "stayed the same"}; ${done.served ? "that answer is served" : pooled ? "neither is served" : "the first answer is served"}.`;
  const what = done.region === "roa" ? "the region of attack" : "the region of attack without the region of importance";
  const start = `${percent(done.area)} of the image (${what}) was inpainted and the network asked again`;
  const effect = done.changed ? "The answer changed" : "The answer stayed the same";
  // A suspected window goes as a whole; its contrast, the second answer's lead and the companion decide which answer is better.
  const suspected = done.region === "roa";
  const p = `p = ${pValue(done.p_value)}`;
  if (done.served)
    return suspected
      ? `${start}. ${effect}; the second answer is served, as the window stood out and the answer without it is clear (${p}).`
      : `${start}. ${effect}; the second answer is served, as the result is not suspect (${p}).`;
  if (action !== "sanitize")
    return `${start}. ${effect}; the policy “${action}” serves only first answers.`;
  const why = suspected
    ? "the window did not stand out enough, the answer without it is not clear, or the companion prefers the first"
    : "the result is suspect";
  return `${start}. ${effect}, but ${why} (${p})${pooled ? "." : ": the first answer stands."}`;
}

/** Why the pool's answer is served, from { before, lead, small_field }; below disclosure `full` nothing of that is known. */
export function explainPool(pool) {
  const others = pool?.small_field ? ", its companion and the network of small fields" : " and its companion";
  const asked = pool ? `the answering network${others}` : "all networks";
  const lead = pool ? `, which leads the first answer by ${percent(pool.lead)} of probability` : "";
  return `The answer is that of ${asked} together${lead}. The verdict stays as it is.`;
}

const LOOKS = {
  flagged: ["flagged", "flag", "Flagged as anomalous"],
  suspect: ["suspect", "flag", "Suspect, not flagged"],
  none: ["calm", "check", "Not flagged"],
};

/** The level of a verdict; events of older gateways know only whether it was flagged. */
export const lookOf = ({ level, flagged }) => (level === "suspect" ? "suspect" : flagged ? "flagged" : "none");

/** The heading of a verdict: state, sentence. */
export function verdictBanner(verdict, { level = "h2", more = null } = {}) {
  const [look, symbol, title] = LOOKS[lookOf(verdict)];
  return h(
    "div",
    { class: `banner ${look}` },
    h("span", { class: "badge", "aria-hidden": "true" }, icon(symbol)),
    h(
      "div",
      {},
      h(level, {}, title),
      h("p", {}, explainVerdict(verdict)),
      more,
    ),
  );
}

/** Steps { title, prediction, served?, remark? } on the way to an answer; empty ones are left out. */
export function answers(steps) {
  return h("ol", { class: "answers", "aria-label": "Answers" }, steps.filter(Boolean).map(answer));
}

const LOUD = new Set(["changed", "disagrees"]);

function answer({ title, prediction, served = false, remark = null }) {
  return h(
    "li",
    { class: served ? "served" : null },
    h(
      "span",
      { class: "step" },
      title,
      served && tag("served", "accent", "check"),
      remark && tag(remark, LOUD.has(remark) ? "warn" : "plain"),
    ),
    h("span", { class: "label" }, prediction.label),
    prediction.probability !== undefined && [
      h("span", { class: "share" }, probability(prediction.probability)),
      shareBar(prediction.probability),
    ],
  );
}
