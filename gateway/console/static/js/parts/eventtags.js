// Kinds and reviews of events, in words, with a symbol and a tone.
import { tag } from "./notices.js";

export const KINDS = {
  flagged: "Flagged",
  blocked: "Blocked",
  suspect: "Suspect",
  changed: "Changed",
  sample: "Sample",
};
export const REVIEWS = { none: "unreviewed", confirmed: "confirmed attack", false_positive: "false positive" };

const KIND_LOOKS = {
  flagged: ["alert", "flag"],
  blocked: ["alert", "block"],
  suspect: ["warn", "flag"],
  changed: ["warn", "swap"],
  sample: ["plain", "dot"],
};
const REVIEW_LOOKS = { none: ["plain", null], confirmed: ["alert", "check"], false_positive: ["ok", "cross"] };

export const kindTag = (kind) => tag(KINDS[kind], ...KIND_LOOKS[kind]);
export const reviewTag = (review) => tag(REVIEWS[review ?? "none"], ...REVIEW_LOOKS[review ?? "none"]);
