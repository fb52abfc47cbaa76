"use strict";
// The live page: one stream of events, and after each the part of the page that it tells of.
const AGAIN_MS = 3000;
const SECTIONS = { run: runSection, findings: findingsSection, curves: chartsSection, log: logSection, setup: setupSection, gpus: gpusSection, queue: queueSection, runs: runsSection };
const BESIDE = ["gpus", "queue", "runs"];
const SETTLED = { curves: drawCharts, runs: renderRuns, log: renderLog };
let source = null;
let pressed = false;

const wanted = () => new URLSearchParams(location.search).get("run");

function renderPart(name) {
  if (name === "setup" && !heard.facts) return document.getElementById(name).replaceChildren();
  const open = document.querySelector(`#${name} details[open]`) !== null;
  const part = SECTIONS[name]();
  document.getElementById(name).replaceWith(part);
  const details = part.querySelector("details");
  if (details) details.open = open;
  SETTLED[name]?.();
}

function renderAll() {
  document.documentElement.lang = state.lang ? "zh-CN" : "en";
  document.documentElement.dataset.theme = state.dark ? "dark" : "light";
  const column = (names) => names.map((name) => el("section", { id: name }));
  document.getElementById("app").replaceChildren(
    header(), el("p", { id: "trouble", class: "muted", hidden: true }),
    el("main", { class: "live" }, el("div", {}, column(Object.keys(SECTIONS).filter((name) => !BESIDE.includes(name)))), el("aside", {}, column(BESIDE))),
    el("footer", { class: "muted" }, t("read_only"), " iisft ", heard.hello?.iisft || "", " ", heard.hello?.workspace || ""));
  Object.keys(SECTIONS).forEach(renderPart);
  renderLink();
}

function header() {
  return el("header", {}, el("strong", {}, "iisft"), el("span", { id: "link" }),
    el("nav", {}, ["curves", "log", "gpus", "runs"].map((part) => el("a", { href: "#" + part }, t(part)))),
    el("button", { id: "language", onclick: () => { state.lang = 1 - state.lang; renderAll(); } }, t("language")),
    el("button", { id: "theme", title: t("theme"), "aria-label": t("theme"), onclick: () => { state.dark = !state.dark; renderAll(); } }, state.dark ? "☀" : "☾"));
}

function renderLink() {
  const link = document.getElementById("link");
  link.className = heard.link;
  link.textContent = t("link_" + heard.link);
  link.title = heard.at ? t("heard", { time: clock(heard.at) }) : "";
  const trouble = document.getElementById("trouble");
  trouble.hidden = heard.link !== "lost";
  trouble.textContent = t("lost_hint");
}

function renderTitle() {
  const row = heard.now;
  document.title = row && heard.facts ? `${row.total_steps ? Math.floor(100 * share(row.step, row.total_steps)) + " % " : ""}${row.id} - iisft` : "iisft";
}

const ON = {
  hello(told) {
    heard.hello = told;
    heard.runs.clear(); // a stream that begins tells everything once more
    heard.gpus = heard.queue = null;
    renderAll();
  },
  runs(told) {
    for (const row of told.changed) heard.runs.set(row.id, row);
    for (const id of told.gone) heard.runs.delete(id);
    renderRuns();
  },
  queue(told) {
    heard.queue = told;
    renderPart("queue");
  },
  run(told) {
    const other = told.id !== heard.id || !told.facts;
    Object.assign(heard, { id: told.id, facts: told.facts }, other ? { now: null, log: null } : {});
    const series = other || !report.runs.length ? NO_CURVES() : report.runs[0].series;
    report.runs = told.facts ? [{ facts: told.facts, series }] : [];
    if (other) state.smoothing = 0.9;
    ["run", "findings", "setup", ...(other ? ["curves", "log"] : [])].forEach(renderPart);
    renderPart("queue");
    renderRuns();
    renderTitle();
  },
  now(told) {
    heard.now = told;
    renderPart("run");
    renderTitle();
  },
  curves(told) {
    if (report.runs.length) takeCurves(report.runs[0], told);
  },
  gpus(told) {
    heard.gpus = told.gpus;
    renderPart("gpus");
  },
  log(told) {
    heard.log = told.lines;
    renderLog();
  },
};

function takeCurves(run, told) {
  const before = run.series, whole = told.whole;
  const joined = (old, more) => (whole || !old ? more : old.concat(more));
  const series = { step: joined(before.step, told.step), time: joined(before.time, told.time), eval: told.eval, marks: told.marks };
  for (const [name, values] of Object.entries(told.curves)) {
    const gap = whole || before[name] ? [] : before.step.map(() => null); // a curve that begins late
    const all = joined(before[name] || gap, values);
    if (all.some((value) => value !== null)) series[name] = all;
  }
  run.series = series;
  const same = plots.length && !whole && Object.keys(series).join() === Object.keys(before).join();
  if (!same) return renderPart("curves");
  document.getElementById("eventlist").replaceChildren(...happened());
  if (!pressed) growCharts(); // not under the hand of somebody who marks a part to zoom into
}

function listen() {
  source?.close();
  const run = wanted();
  source = new EventSource(run === null ? "events" : `events?run=${encodeURIComponent(run)}`);
  for (const [name, act] of Object.entries(ON)) {
    source.addEventListener(name, (event) => {
      heard.at = Date.now() / 1000;
      setLink("live");
      act(JSON.parse(event.data));
    });
  }
  source.addEventListener("error", () => {
    setLink("lost");
    // refused and not only interrupted: the browser does not try that again by itself
    if (source.readyState === EventSource.CLOSED) setTimeout(listen, AGAIN_MS);
  });
}

function setLink(link) {
  if (link !== heard.link) {
    heard.link = link;
    renderLink();
  }
}

function choose(event, id) {
  if (event.ctrlKey || event.metaKey || event.shiftKey || event.button) return; // a tab of its own
  event.preventDefault();
  history.pushState(null, "", id === null ? "./" : `?run=${encodeURIComponent(id)}`);
  scrollTo(0, 0);
  listen();
}

const follow_ = (event) => choose(event, null);

report = { runs: [], answers: [], comparisons: [] };
renderAll();
listen();
addEventListener("popstate", listen);
addEventListener("pointerdown", () => { pressed = true; });
addEventListener("pointerup", () => { pressed = false; });
addEventListener("pointercancel", () => { pressed = false; });
let wide = innerWidth;
addEventListener("resize", () => {
  if (wide === innerWidth) return;
  wide = innerWidth;
  renderPart("curves");
});
