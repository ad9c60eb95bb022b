// Specifications of charts that several views share: lines over steps, intervals, small maps.

const FIT = { autosize: { type: "fit", contains: "padding" } };

function stepRule() {
  return {
    data: { values: [{}] },
    mark: { type: "rule", color: ink().rule, strokeDash: [3, 3], opacity: 0.65 },
    encoding: { x: { datum: { expr: "step" }, type: "quantitative", scale: stepAxis().scale } },
  };
}

// All pictures over steps have one axis, that of all runs together.
function stepAxis() {
  const steps = stepsOfSet(theSet());
  const domain = steps.length > 1 ? [steps[0], steps.at(-1)] : [steps[0] - 1, steps[0] + 1];
  const axis = theSet()?.stages ? { values: steps, ...stageLabels() } : { tickCount: 6 };
  return { field: "step", type: "quantitative", title: stepWord(), scale: { domain, nice: false }, axis };
}

// A step is written as the name of the stage at its place; JSON keeps a name within its quotes.
function stageLabels() {
  const stages = theSet()?.stages;
  return stages ? { labelExpr: `${JSON.stringify(stages.map((name) => plain(name, 24)))}[datum.value]` } : {};
}

// A line and its band for each group: rows `step, group, value, low, high`. Without a domain the
// signal `top` is its end.
function groupLines(set, width, { title, domain, band = true, format = ".2f", height = 190 }) {
  const scale = domain ? { domain, clamp: true } : { domainMin: 0, domainMax: { expr: "top" }, nice: false, clamp: true };
  const y = { field: "value", type: "quantitative", title, scale, axis: { format, tickCount: 5 } };
  const color = { field: "group", type: "nominal", scale: groupDomain(set), legend: null };
  const bands = {
    transform: [{ filter: "isValid(datum.low)" }],
    mark: { type: "area", opacity: 0.18 },
    encoding: { x: stepAxis(), y: { ...y, field: "low" }, y2: { field: "high" }, color },
  };
  return {
    ...FIT,
    width,
    height,
    params: [{ name: "step", value: 0 }, { name: "top", value: 1 }],
    layer: [
      ...(band ? [bands] : []),
      { mark: { type: "line", strokeWidth: 1.8 }, encoding: { x: stepAxis(), y, color } },
      {
        mark: { type: "point", filled: true, size: 42, opacity: 1 },
        encoding: { x: stepAxis(), y, color, shape: { field: "group", type: "nominal", scale: shapeDomain(set), legend: null } },
      },
      stepRule(),
    ],
  };
}

// A line for each run: rows `step, run, value` and, where known, `filled`; to the signal `top`.
function runLines(width, runs, { title, format = ".2f", height = 200, dash }) {
  const scale = { domainMin: 0, domainMax: { expr: "top" }, nice: false, clamp: true };
  const y = { field: "value", type: "quantitative", title, scale, axis: { format, tickCount: 5 } };
  const color = {
    field: "run",
    type: "nominal",
    scale: { domain: runs.map((run) => run.name), range: runs.map((_, place) => runColour(place)) },
    legend: null,
  };
  const detail = dash
    ? { strokeDash: { field: dash, type: "nominal", scale: { domain: ["x′ ← x", "x ← x′"], range: [[1, 0], [5, 4]] }, legend: { title: null, orient: "top" } } }
    : {};
  return {
    ...FIT,
    width,
    height,
    params: [{ name: "step", value: 0 }, { name: "top", value: 1 }],
    layer: [
      { mark: { type: "line", strokeWidth: 1.8 }, encoding: { x: stepAxis(), y, color, ...detail } },
      {
        mark: { type: "point", size: 55, strokeWidth: 1.6, opacity: 1 },
        encoding: {
          x: stepAxis(),
          y,
          color,
          fill: { condition: { test: "datum.filled === false", value: ink().paper }, ...color },
          ...(dash ? { detail: { field: dash, type: "nominal" } } : {}),
        },
      },
      stepRule(),
    ],
  };
}

// The nine lines of a run: rows `step, pair, observed, updated, value, low, high, bold`.
function pairLines(set, width, { domain, height = 230 }) {
  const y = { field: "value", type: "quantitative", title: "mean similarity", scale: { domain }, axis: { format: ".2f", tickCount: 5 } };
  const colour = (side) => ({ field: side, type: "nominal", scale: groupDomain(set), legend: null });
  const size = { condition: { test: "datum.bold", value: 2.8 }, value: 1.1 };
  const opacity = { condition: { test: "datum.bold", value: 1 }, value: 0.6 };
  const lines = (side, dash) => ({
    mark: { type: "line", strokeDash: dash },
    encoding: { x: stepAxis(), y, detail: { field: "pair", type: "nominal" }, color: colour(side), strokeWidth: size, opacity },
  });
  return {
    ...FIT,
    width,
    height,
    params: [{ name: "step", value: 0 }],
    layer: [
      {
        transform: [{ filter: "datum.bold && isValid(datum.low)" }],
        mark: { type: "area", opacity: 0.14 },
        encoding: { x: stepAxis(), y: { ...y, field: "low" }, y2: { field: "high" }, detail: { field: "pair", type: "nominal" }, color: colour("observed") },
      },
      lines("updated", [1, 0]),
      lines("observed", [5, 5]),
      {
        mark: { type: "point", filled: true, size: 26, opacity: 0.9 },
        encoding: { x: stepAxis(), y, color: colour("observed"), shape: { field: "observed", type: "nominal", scale: shapeDomain(set), legend: null } },
      },
      stepRule(),
    ],
  };
}

// Means of groups by groups with their numbers: rows `row, column, value`, the first two labels.
function groupMap(set, width, { domain, format = ".2f" }) {
  const names = set.groups.map((group) => plain(group.short));
  const axis = { labelAngle: 0, domain: false, ticks: false, labelFontSize: 11.5 };
  const x = { field: "column", type: "nominal", sort: names, axis: { ...axis, title: "updated x" } };
  const y = { field: "row", type: "nominal", sort: names, axis: { ...axis, title: "observed x′" } };
  const middle = (domain[0] + domain[1]) / 2;
  return {
    ...FIT,
    width,
    height: Math.min(width * 0.7, 230),
    layer: [
      {
        mark: { type: "rect", stroke: ink().paper, strokeWidth: 2 },
        encoding: { x, y, color: { field: "value", type: "quantitative", scale: { domain, range: mapColours(), clamp: true }, legend: null } },
      },
      {
        mark: { type: "text", fontSize: 13 },
        encoding: {
          x,
          y,
          text: { field: "value", type: "quantitative", format },
          color: { condition: { test: `datum.value > ${middle}`, value: isDark() ? "#10131a" : "#ffffff" }, value: ink().text },
        },
      },
    ],
  };
}

// From little to much: blues that go to ink on white paper, and to light on dark.
const mapColours = () =>
  isDark()
    ? ["#1f2a3a", "#1f4a7a", "#2f7fb8", "#7cc0e0", "#e6f5fb"]
    : ["#f7fbff", "#c6dbef", "#6baed6", "#2171b5", "#08306b"];

// Numbers with their intervals, a row each: rows `label, value, low, high, colour key`.
function intervals(width, { title, domain, format, key, scale, shape, labels, height }) {
  const y = { field: "label", type: "nominal", sort: labels, title: null, axis: { labelLimit: Math.max(90, width * 0.55), offset: 8, domain: false, ticks: false, labelFontSize: 11.5, grid: true } };
  const x = { type: "quantitative", title, scale: { domain, clamp: true }, axis: { format, tickCount: 5, grid: false } };
  const color = { field: key, type: "nominal", scale, legend: null };
  const offset = { yOffset: { field: "run", type: "nominal", sort: null } };
  return {
    ...FIT,
    width,
    height,
    layer: [
      { mark: { type: "rule", strokeWidth: 2 }, encoding: { y, x: { ...x, field: "low" }, x2: { field: "high" }, color, ...offset } },
      {
        mark: { type: "point", filled: true, size: 62, opacity: 1 },
        encoding: { y, x: { ...x, field: "value" }, color, ...offset, ...(shape ? { shape: { field: key, type: "nominal", scale: shape, legend: null } } : {}) },
      },
    ],
  };
}

const withInterval = (value, low, high, form) =>
  low === null || low === undefined ? form(value) : `${form(value)} [${form(low)}, ${form(high)}]`;
