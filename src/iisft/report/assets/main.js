"use strict";
// The page: header, the five parts, language and theme.
const PARTS = { overview: overviewSection, evaluation: evaluationSection, predictions: predictionsSection, curves: chartsSection, setup: setupSection };

function overviewSection() {
  const several = report.runs.length > 1;
  const section = el("section", { id: "overview" });
  for (const { facts, series } of report.runs) {
    const last = series.loss ? series.loss.filter((value) => value !== null).slice(-5) : [];
    const mean = last.length ? last.reduce((sum, value) => sum + value, 0) / last.length : null;
    const tone = { finished: "good", failed: "bad", lost: "bad", stopped: "warn" }[facts.state] || "";
    const cards = [
      [t("steps"), `${number(facts.step)} / ${number(facts.total_steps)}`],
      [t("loss"), series.loss ? `${number(series.loss.find((value) => value !== null))} → ${number(mean)}` : "-"],
      [t("duration"), duration((facts.ended || series.time.at(-1)) - facts.started)],
      [t("restarts"), number(facts.restarts)],
      [t("batch"), number(facts.observed?.global_batch)],
      [t("arithmetic"), text(facts.observed?.arithmetic || facts.observed?.compute_dtype)],
      [t("rows"), number(facts.observed?.rows)],
      [t("checkpoints"), number(facts.checkpoints.filter((each) => each.complete).length)],
      ...facts.checkpoints.filter((each) => each.best).map((each) => [t("best_checkpoint"), `${each.step} (${t("eval_loss")} ${number(each.eval_loss)})`]),
    ];
    section.append(el(several ? "h2" : "h1", {}, facts.id, " ", el("span", { class: "badge " + tone }, t(facts.state))),
      facts.reason ? el("p", { class: "muted" }, facts.reason) : null,
      el("div", { class: "cards" }, cards.map(([name, value]) => el("div", { class: "card" }, el("span", {}, name), el("b", {}, value)))));
  }
  const main = answers();
  if (main) {
    const compared = report.comparisons[state.group];
    const toned = (pairs) => sentences(pairs.filter(([tone]) => tone));
    if (compared) section.append(toned(compared.sentences[language()]));
    section.append(el("h3", {}, main.name), toned(main.sentences[language()]));
  }
  return section;
}

function header() {
  return el("header", {},
    el("strong", {}, t(report.runs.length > 1 ? "comparison" : "report")),
    el("nav", {}, Object.keys(PARTS).map((part) => el("a", { href: "#" + part }, t(part)))),
    el("button", { id: "language", onclick: () => { state.lang = 1 - state.lang; renderAll(); } }, t("language")),
    el("button", { id: "theme", title: t("theme"), "aria-label": t("theme"), onclick: () => { state.dark = !state.dark; renderAll(); } }, state.dark ? "☀" : "☾"));
}

// What needs its place in the document first.
const SETTLE = { predictions: showDetail, curves: drawCharts };

function renderPart(name) {
  document.getElementById(name).replaceWith(PARTS[name]());
  SETTLE[name]?.();
}

function renderAll() {
  document.documentElement.lang = state.lang ? "zh-CN" : "en";
  document.documentElement.dataset.theme = state.dark ? "dark" : "light";
  document.title = `${report.runs.map((run) => run.facts.id).join(" / ")} - iisft`;
  document.getElementById("app").replaceChildren(
    header(), el("main", {}, Object.values(PARTS).map((part) => part())),
    el("footer", { class: "muted" }, t("made", { time: moment(report.made), version: report.iisft })));
  Object.values(SETTLE).forEach((settle) => settle());
}

async function start() {
  try {
    report = await unpack();
  } catch (error) {
    document.getElementById("wait").textContent = `${t("old_browser")} (${error.message})`;
    return;
  }
  if (report.answers.length) {
    const best = report.comparisons[0] && report.answers[0].sets.findIndex((set) => set.name === report.comparisons[0].best);
    state.set = best > 0 ? best : 0;
  }
  const most = Math.max(...report.runs.map((run) => run.series.step.length));
  state.smoothing = Math.min(0.998, Math.max(0.8, 1 - 100 / Math.max(1, most)));
  state.smoothing = Math.round(state.smoothing * 500) / 500;
  loadVerdicts();
  renderAll();
  document.addEventListener("keydown", onKey);
  let wide = innerWidth;
  addEventListener("resize", () => {
    if (wide === innerWidth) return;
    wide = innerWidth;
    renderPart("curves");
  });
}
start();
