"use strict";
// Curves: one chart per figure, all runs in it, one common x axis with restarts, findings and checkpoints.
const CHARTS = [["loss"], ["grad_norm"], ["learning_rate"], ["step_s"], ["tokens_per_s"], ["vram_allocated_gib", "vram_reserved_gib"]];
const SMOOTHED = new Set(["loss", "grad_norm", "step_s", "tokens_per_s"]);
const PALETTE = ["--c0", "--c1", "--c2", "--c3", "--c4", "--c5"];
let plots = [];
let zooming = false;

// Exponential moving average without the pull to zero at its beginning (as in Adam and TensorBoard); gaps stay gaps.
function smooth(values, weight) {
  let sum = 0, share = 0;
  return values.map((value) => {
    if (value === null || value === undefined) return null;
    sum = weight * sum + (1 - weight) * value;
    share = weight * share + (1 - weight);
    return sum / share;
  });
}

function position(series, step, time) {
  return state.byTime ? (time - (series.time[0] ?? time)) / 3600 : step;
}

function chartsSection() {
  const section = el("section", { id: "curves" }, el("h2", {}, t("curves")));
  const runs = report.runs.filter((run) => run.series.step.length);
  if (!runs.length) return section.append(el("p", { class: "muted" }, t("no_curves"))), section;
  const grid = el("div", { class: "charts", id: "charts" });
  const slider = el("input", {
    type: "range", min: 0, max: 0.998, step: 0.002, value: state.smoothing, "aria-label": t("smoothing"), id: "smoothing",
    oninput: (event) => { state.smoothing = +event.target.value; drawCharts(); },
  });
  const axis = el("button", { id: "axis", onclick: () => { state.byTime = !state.byTime; renderPart("curves"); } },
    state.byTime ? t("by_step") : t("by_time"));
  section.append(
    el("div", { class: "tools" },
      el("label", {}, t("smoothing"), " ", slider), axis,
      el("button", { id: "whole", onclick: () => plots.forEach((plot) => plot.setScale("x", { min: plot.data[0][0], max: plot.data[0].at(-1) })) }, t("whole")),
      el("span", { class: "muted" }, t("zoom_hint"))),
    grid, el("div", { id: "eventlist" }, happened()));
  return section;
}

function drawCharts() {
  const grid = document.getElementById("charts");
  const range = plots.length ? [plots[0].scales.x.min, plots[0].scales.x.max] : null;
  const zoomed = plots.length && plots[0].byTime === state.byTime && range;
  plots.forEach((plot) => plot.destroy());
  plots = [];
  if (!grid) return;
  grid.replaceChildren();
  const drawn = CHARTS.filter((names) => report.runs.some((run) => names.some((name) => run.series[name])));
  const boxes = drawn.map(() => el("figure", { class: "chart" }));
  grid.append(...boxes); // all of them before the first one is measured
  drawn.forEach((names, i) => plots.push(drawChart(names, boxes[i])));
  if (zoomed) plots[0].setScale("x", { min: range[0], max: range[1] });
}

// The lines of a chart, and how each is drawn.
function linesOf(names) {
  const tables = [], series = [{ label: state.byTime ? t("hours") : t("step") }];
  report.runs.forEach((run, at) => {
    const own = run.series;
    const x = own.step.map((step, i) => position(own, step, own.time[i]));
    for (const name of names.filter((each) => own[each])) {
      const paint = PALETTE[(report.runs.length > 1 ? at : names.indexOf(name)) % PALETTE.length];
      const label = label_(run, names.length > 1 ? t(name) : "", t(names.length > 1 ? "vram" : name));
      if (SMOOTHED.has(name) && state.smoothing > 0) {
        tables.push([x, own[name]]);
        series.push({ label, stroke: colour(paint) + "55", width: 1, points: { show: own.step.length < 3 } });
        tables.push([x, smooth(own[name], state.smoothing)]);
        series.push({ label: `${label} (${t("smoothing")} ${state.smoothing})`, stroke: colour(paint), width: 2, points: { show: false } });
      } else {
        tables.push([x, own[name]]);
        series.push({ label, stroke: colour(paint), width: 1.5, points: { show: own.step.length < 3 } });
      }
    }
    if (names[0] === "loss" && own.eval.step.length) {
      tables.push([own.eval.step.map((step, i) => position(own, step, own.eval.time[i])), own.eval.loss]);
      series.push({ label: label_(run, "", t("eval_loss")), stroke: colour("--eval"), width: 2, points: { show: true, size: 7 }, spanGaps: true });
    }
  });
  return [uPlot.join(tables), series];
}

function drawChart(names, box) {
  const [data, series] = linesOf(names);
  const title = t(names.length > 1 ? "vram" : names[0]);
  box.append(el("figcaption", {}, title));
  const width = Math.max(280, box.clientWidth - 2);
  const grid = { stroke: colour("--line"), width: 1 };
  const axis = { stroke: colour("--muted"), grid, ticks: grid, font: "12px system-ui, sans-serif" };
  const plot = new uPlot({
    width, height: 230, series,
    scales: { x: { time: false } },
    axes: [axis, { ...axis, size: 64, values: (_, ticks) => ticks.map((tick) => number(tick, 3)) }],
    cursor: { sync: { key: "all" }, drag: { x: true, y: false } },
    legend: { live: true },
    hooks: { draw: [drawMarks], setScale: [follow] },
  }, data, box);
  plot.byTime = state.byTime;
  plot.names = names;
  return plot;
}

// The same lines with more points. Where the reader looks at a part of the axis, that part stays.
function growCharts() {
  const whole = plots[0].scales.x.min <= plots[0].data[0][0] && plots[0].scales.x.max >= plots[0].data[0].at(-1);
  const grown = plots.map((plot) => linesOf(plot.names));
  if (grown.some(([, series], i) => series.length !== plots[i].series.length)) return drawCharts();
  zooming = true; // each is set by itself
  plots.forEach((plot, i) => {
    const { min, max } = plot.scales.x;
    plot.setData(grown[i][0], whole);
    if (!whole) plot.setScale("x", { min, max });
  });
  zooming = false;
}

const label_ = (run, part, whole) => (report.runs.length > 1 ? `${run.facts.id} ${part}`.trim() : part || whole);

function follow(plot, key) {
  if (key !== "x" || zooming) return;
  zooming = true;
  const { min, max } = plot.scales.x;
  for (const other of plots) {
    if (other !== plot && (other.scales.x.min !== min || other.scales.x.max !== max)) other.setScale("x", { min, max });
  }
  zooming = false;
}

function drawMarks(plot) {
  const { ctx, bbox } = plot;
  ctx.save();
  ctx.beginPath();
  ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
  ctx.clip();
  for (const run of report.runs) {
    for (const mark of run.series.marks) {
      const x = plot.valToPos(position(run.series, mark.step, mark.time), "x", true);
      const paint = { error: "--bad", warn: "--warn" }[mark.severity] || "--muted";
      ctx.strokeStyle = ctx.fillStyle = colour(paint);
      if (mark.kind === "checkpoint") {
        ctx.beginPath();
        ctx.moveTo(x - 5, bbox.top + bbox.height);
        ctx.lineTo(x + 5, bbox.top + bbox.height);
        ctx.lineTo(x, bbox.top + bbox.height - 9);
        ctx.fill();
      } else {
        ctx.setLineDash([6, 4]);
        ctx.lineWidth = 1.5;
        ctx.beginPath();
        ctx.moveTo(x, bbox.top);
        ctx.lineTo(x, bbox.top + bbox.height);
        ctx.stroke();
      }
    }
  }
  ctx.restore();
}

function happened() {
  const rows = [];
  for (const run of report.runs) {
    const saved = run.series.marks.filter((mark) => mark.kind === "checkpoint").map((mark) => mark.step);
    if (saved.length) {
      const many = saved.length > 12 ? `${saved.slice(0, 12).join(", ")}, ... (${saved.length})` : saved.join(", ");
      rows.push(el("tr", {}, cells([report.runs.length > 1 ? run.facts.id : "", "▲ " + t("checkpoints"), many, ""])));
    }
    for (const mark of run.series.marks.filter((each) => each.kind !== "checkpoint")) {
      rows.push(el("tr", { class: "tone-" + mark.severity },
        cells([`${t("step")} ${number(mark.step)}, ${moment(mark.time)}`, t(mark.kind), mark.text, mark.fix || ""])));
    }
  }
  return rows.length
    ? [el("h3", {}, t("events")), table([t("when"), t("what"), "", t("fix")], rows)]
    : [el("p", { class: "muted" }, t("nothing_happened"))];
}
