// The figures of a robustness card: nested groups flattened to rows, names and values as people read them.
import { count, percent, words } from "../format.js";

export const isGroup = (value) => value !== null && typeof value === "object" && !Array.isArray(value);

// Keys that are false-positive rates by themselves, as in { flagged: { "0.01": ..., "0.05": ... } }.
const RATE = /^0?\.\d+$/;

export const scalars = (group) =>
  Object.fromEntries(
    Object.entries(group)
      .filter(([key, value]) => !isGroup(value) && !Array.isArray(value) && !key.endsWith("_interval"))
      .map(([key, value]) => [RATE.test(key) ? `alpha_${key}` : key, value]),
  );

/**
 * Rows { path, values } of the innermost groups, with the figures of the groups around them; those of `group` itself
 * are the conditions of all. A group that is only broken down by false-positive rates is one row without a path.
 */
export function rowsOf(group) {
  const inner = Object.entries(group).filter(([, value]) => isGroup(value));
  if (inner.every(([, value]) => Object.keys(value).every((key) => RATE.test(key)))) {
    const broken = inner.flatMap(([key, value]) => Object.entries(value).map(([rate, v]) => [`${key}_${rate}`, v]));
    return [{ path: [], values: { ...scalars(group), ...Object.fromEntries(broken) } }];
  }
  return inner.flatMap(([key, value]) => leaves(value, [key], {}));
}

function leaves(group, path, inherited) {
  const values = { ...inherited, ...scalars(group) };
  const inner = Object.entries(group).filter(([, value]) => isGroup(value));
  if (!inner.length) return [{ path, values }];
  return inner.flatMap(([key, value]) => leaves(value, [...path, key], values));
}

/** `eps_8` -> `eps 8/255`, `excess_0.05` -> `Excess at alpha 5%`, `max_softmax` -> `Max softmax`. */
export function nameOf(key) {
  if (key === "n") return key;
  const [, radius, eps] = key.match(/^(eps|pgd)_([\d.]+)$/) ?? [];
  if (radius) return `${radius === "pgd" ? "PGD" : "eps"} ${eps}/255`;
  const [, figure, rate] = key.match(/^(.+)_(0?\.\d+)$/) ?? [];
  const alpha = rate && `alpha ${percent(Number(rate), rate < 0.01 ? 1 : 0)}`;
  if (figure === "fpr") return `FPR ${percent(Number(rate), 0)}`;
  if (figure) return figure === "alpha" ? alpha : `${words(figure)} at ${alpha}`;
  return words(key).replace(/\b(fpr|fgsm|pgd)\b/gi, (name) => name.toUpperCase());
}

const COUNTED = new Set(["restarts", "targets", "seed", "n", "side", "fooled"]);

export function shown(key, value) {
  if (value === null || value === undefined) return "–";
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (typeof value !== "number") return typeof value === "string" ? value : JSON.stringify(value);
  if (key === "eps") return `${value}/255`;
  if (COUNTED.has(key) || Math.abs(value) > 1) return Number.isInteger(value) ? count(value) : value.toFixed(2);
  return percent(value, value !== 0 && Math.abs(value) < 0.01 ? 2 : 1);
}
