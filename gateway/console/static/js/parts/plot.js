// Draws charts on canvases with Chart.js, in the colours of the theme, anew when the theme changes.
import {
  BarElement,
  BarWithErrorBar,
  BarWithErrorBarsController,
  CategoryScale,
  Chart,
  Legend,
  LineController,
  LineElement,
  LinearScale,
  PointElement,
  Tooltip,
} from "../../vendor/chartjs-4.6.1/chart.js";
import { percent } from "../format.js";
import { told } from "./cardfigures.js";
import { linesOf, NARROW, NARROW_TICK, WIDE_TICK } from "./ticks.js";

Chart.register(
  BarElement,
  BarWithErrorBar,
  BarWithErrorBarsController,
  CategoryScale,
  Legend,
  LineController,
  LineElement,
  LinearScale,
  PointElement,
  Tooltip,
);

const SERIES = ["--series-1", "--series-2", "--series-3"];
const POINTS = ["circle", "rectRot", "triangle"];
const DASHES = [[], [6, 3], [2, 3]];
const drawings = new Map();

/** Draw `spec` (see chart.js) on `canvas`, which is in the page. */
export function draw(canvas, spec) {
  for (const [old, { made }] of drawings) {
    if (old.isConnected && old !== canvas) continue;
    made.destroy();
    drawings.delete(old);
  }
  drawings.set(canvas, { made: new Chart(canvas, configuration(spec, palette())), spec });
}

function redraw() {
  for (const [canvas, { spec }] of [...drawings]) if (canvas.isConnected) draw(canvas, spec);
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
new MutationObserver(redraw).observe(document.documentElement, { attributes: true, attributeFilter: ["data-theme"] });

/** Colours by role, resolved: a custom property itself holds text such as `light-dark(...)`. */
function palette() {
  const probe = document.createElement("span");
  document.body.append(probe);
  const colour = (name) => {
    probe.style.color = `var(${name})`;
    return getComputedStyle(probe).color;
  };
  const found = {
    ink: colour("--ink"),
    muted: colour("--muted"),
    line: colour("--line"),
    surface: colour("--surface"),
    series: SERIES.map(colour),
    font: { family: getComputedStyle(document.body).fontFamily, size: 12 },
  };
  probe.remove();
  return found;
}

function configuration(spec, colours) {
  const bars = spec.kind === "bars";
  const figures = { ...axis(spec.axis, colours), beginAtZero: true, ...limits(spec) };
  figures.ticks.callback = (value) => (spec.share ? percent(value, 0) : value);
  const names = axis(spec.rowTitle, colours);
  names.grid = { display: false };
  if (bars) {
    names.title.display = false;
    names.ticks = { ...names.ticks, color: colours.ink, autoSkip: false, crossAlign: "far", callback: wrapped };
  }
  return {
    type: bars ? BarWithErrorBarsController.id : LineController.id,
    data: {
      labels: spec.rows.map(({ name }) => name),
      datasets: spec.series.map((label, i) => ({
        label,
        data: spec.rows.map(({ cells }) => (bars ? bar(cells[i]) : (cells[i]?.value ?? null))),
        ...look(bars, i, colours),
      })),
    },
    options: {
      animation: false,
      maintainAspectRatio: false,
      indexAxis: bars ? "y" : "x",
      interaction: { mode: "index", axis: bars ? "y" : "x", intersect: false },
      font: colours.font,
      scales: bars ? { x: figures, y: names } : { x: names, y: figures },
      plugins: {
        legend: {
          display: spec.series.length > 1,
          align: "start",
          labels: { color: colours.ink, font: colours.font, usePointStyle: !bars, boxWidth: 12, boxHeight: bars ? 12 : 7 },
        },
        tooltip: {
          callbacks: {
            label: ({ dataset, datasetIndex, dataIndex }) =>
              ` ${dataset.label}: ${told(spec.rows[dataIndex].cells[datasetIndex], spec.share)}`,
          },
        },
      },
    },
  };
}

const axis = (text, colours) => ({
  border: { display: false },
  grid: { color: colours.line },
  ticks: { color: colours.muted, font: colours.font },
  title: { display: Boolean(text), text, color: colours.muted, font: colours.font },
});

/** Shares that come near 1 have the whole scale, so that charts of them can be compared. */
function limits({ share, rows }) {
  if (!share) return {};
  const highest = Math.max(...rows.flatMap(({ cells }) => cells.map((cell) => cell?.interval?.[1] ?? cell?.value ?? 0)));
  return highest > 0.5 ? { max: 1 } : {};
}

function bar(cell) {
  if (!cell) return { x: null };
  const [xMin, xMax] = cell.interval ?? [];
  return { x: cell.value, xMin, xMax };
}

function look(bars, i, colours) {
  const colour = colours.series[i % colours.series.length];
  if (bars)
    return {
      backgroundColor: colour,
      errorBarColor: colours.ink,
      errorBarLineWidth: 1,
      errorBarWhiskerColor: colours.ink,
      errorBarWhiskerLineWidth: 1,
      errorBarWhiskerSize: 5,
      maxBarThickness: 14,
      categoryPercentage: 0.75,
      barPercentage: 0.9,
    };
  return {
    borderColor: colour,
    backgroundColor: colour,
    borderDash: DASHES[i % DASHES.length],
    pointStyle: POINTS[i % POINTS.length],
    pointRadius: 4,
    borderWidth: 2,
  };
}

/** A tick's name in lines that leave the bars room; Chart.js calls it with the scale as `this`. */
function wrapped(value) {
  return linesOf(this.getLabelForValue(value), this.chart.width < NARROW ? NARROW_TICK : WIDE_TICK);
}
