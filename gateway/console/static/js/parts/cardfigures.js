// The figures of a robustness card: nested groups flattened to rows, names and values as people read them.
import { count, percent, words } from "../format.js";

export const isGroup = (value) => value !== null && typeof value === "object" && !Array.isArray(value);

/** The number at `path` of nested groups, or null. */
export function numberAt(group, ...path) {
  const value = path.reduce((inner, key) => (isGroup(inner) && Object.hasOwn(inner, key) ? inner[key] : null), group);
  return Number.isFinite(value) ? value : null;
}

/** `{ value, interval }` of the figure `key` of a group, as in { key: 0.5, key_interval: [0.4, 0.6] }; null without it. */
export function measured(group, key) {
  const value = numberAt(group, key);
  if (value === null) return null;
  const interval = group[`${key}_interval`];
  const two = Array.isArray(interval) && interval.length === 2 && interval.every(Number.isFinite);
  return { value, interval: two ? interval : null };
}

/** `{ value, interval }` as text, a share in percent. */
export function told(found, share) {
  if (!found) return "–";
  const one = (value) => (share ? percent(value) : value.toFixed(2));
  const [low, high] = found.interval ?? [];
  return found.interval ? `${one(found.value)} (${one(low)} to ${one(high)})` : one(found.value);
}

/** Entries of a group that are groups themselves. */
export const groupsOf = (group) => (isGroup(group) ? Object.entries(group).filter(([, value]) => isGroup(value)) : []);

/** The rates at which a group has figures: of keys `PREFIX_0.05`, ascending. */
export function ratesOf(group, prefix) {
  const keys = isGroup(group) ? Object.keys(group) : [];
  const rates = keys.filter((key) => key.startsWith(`${prefix}_`)).map((key) => Number(key.slice(prefix.length + 1)));
  return rates.filter(Number.isFinite).sort((a, b) => a - b);
}

/** The rate that is nearest to `alpha`, or null without any. */
export const nearest = (rates, alpha) =>
  rates.reduce((best, rate) => (best === null || Math.abs(rate - alpha) < Math.abs(best - alpha) ? rate : best), null);

export const atAlpha = (rate) => `alpha ${Number((rate * 100).toPrecision(3))}%`;

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
  const inner = innerOf(group);
  if (inner.every(([, value]) => Object.keys(value).every((key) => RATE.test(key)))) {
    const broken = inner.flatMap(([key, value]) => Object.entries(value).map(([rate, v]) => [`${key}_${rate}`, v]));
    return [{ path: [], values: { ...scalars(group), ...Object.fromEntries(broken) } }];
  }
  return inner.flatMap(([key, value]) => leaves(value, [key], {}));
}

function leaves(group, path, inherited) {
  const values = { ...inherited, ...scalars(group) };
  const inner = innerOf(group);
  if (!inner.length) return [{ path, values }];
  return inner.flatMap(([key, value]) => leaves(value, [...path, key], values));
}

/** Groups in a group; a list of groups counts as groups that are named by the first text in each. */
function innerOf(group) {
  return Object.entries(group).flatMap(([key, value]) => {
    if (isGroup(value)) return [[key, value]];
    if (!Array.isArray(value) || !value.length || !value.every(isGroup)) return [];
    return value.map((item, i) => {
      const name = Object.keys(item).find((field) => typeof item[field] === "string");
      const { [name]: text = `${key} ${i + 1}`, ...rest } = item;
      return [text, rest];
    });
  });
}

/** `eps_8` -> `eps 8/255`, `excess_0.05` -> `Excess at alpha 5%`, `max_softmax` -> `Max softmax`. */
export function nameOf(key) {
  if (key === "n") return key;
  const [, radius, eps] = key.match(/^(eps|pgd)_([\d.]+)$/) ?? [];
  if (radius) return `${radius === "pgd" ? "PGD" : "eps"} ${eps}/255`;
  const [, figure, rate] = key.match(/^(.+)_(0?\.\d+)$/) ?? [];
  const alpha = rate && atAlpha(Number(rate));
  if (figure === "fpr") return `FPR ${percent(Number(rate), 0)}`;
  if (figure) return figure === "alpha" ? alpha : `${words(figure)} at ${alpha}`;
  return words(key).replace(/\b(fpr|fgsm|pgd)\b/gi, (name) => name.toUpperCase());
}

// The last three are forward passes.
const COUNTED = new Set(["restarts", "targets", "seed", "n", "side", "fooled", "screen", "verdict", "full"]);

export function shown(key, value) {
  if (value === null || value === undefined) return "–";
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (typeof value !== "number") return typeof value === "string" ? value : JSON.stringify(value);
  if (key === "eps") return `${value}/255`;
  if (COUNTED.has(key) || Math.abs(value) > 1) return Number.isInteger(value) ? count(value) : value.toFixed(2);
  return percent(value, value !== 0 && Math.abs(value) < 0.01 ? 2 : 1);
}
