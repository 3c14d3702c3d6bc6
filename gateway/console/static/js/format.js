// Numbers and times as people read them.

const percents = [0, 1, 2, 3].map(
  (d) => new Intl.NumberFormat("en", { style: "percent", minimumFractionDigits: d, maximumFractionDigits: d }),
);
const counts = new Intl.NumberFormat("en");
const dates = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "medium" });
const days = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeZone: "UTC" });
const relative = new Intl.RelativeTimeFormat("en", { numeric: "auto", style: "short" });

export const count = (n) => counts.format(n);

/** Share in [0, 1]. */
export const percent = (share, digits = 1) => percents[digits].format(share);

/** A share close to 0 or 1 with enough digits to differ from them. */
export function fine(share) {
  const distance = Math.min(share, 1 - share);
  if (distance === 0) return percent(share, 0);
  return percent(share, distance > 0.05 ? 0 : distance > 0.005 ? 1 : distance > 0.0005 ? 2 : 3);
}

export const probability = (p) => (p > 0.9995 ? "> 99.9%" : percent(p, 1));

export function pValue(p) {
  if (p === null || p === undefined) return "–";
  return p < 0.00001 ? p.toExponential(1) : p < 0.1 ? String(Number(p.toPrecision(2))) : p.toFixed(2);
}

export const decimal = (x, digits = 2) => (x === null || x === undefined ? "–" : x.toFixed(digits).replace("-", "−"));

export const milliseconds = (x) => `${x < 10 ? x.toFixed(1) : Math.round(x)} ms`;

export function bytes(n) {
  return n < 1024 ? `${n} B` : n < 1 << 20 ? `${(n / 1024).toFixed(1)} KiB` : `${(n / (1 << 20)).toFixed(1)} MiB`;
}

export const moment = (iso) => dates.format(new Date(iso));

/** A calendar day, `2026-11-21`; text that is no day is shown as it is. */
export function day(iso) {
  const date = new Date(iso);
  return Number.isNaN(date.getTime()) ? String(iso) : days.format(date);
}

export function ago(iso, now = Date.now()) {
  const seconds = (new Date(iso).getTime() - now) / 1000;
  for (const [unit, size] of [
    ["day", 86400],
    ["hour", 3600],
    ["minute", 60],
  ]) {
    if (Math.abs(seconds) >= size) return relative.format(Math.round(seconds / size), unit);
  }
  return Math.abs(seconds) < 5 ? "just now" : relative.format(Math.round(seconds), "second");
}

/** `neuron_sensitivity` -> `Neuron sensitivity`. */
export function words(name) {
  return capital(String(name).replaceAll("_", " "));
}

export const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);
