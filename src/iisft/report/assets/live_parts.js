"use strict";
// What stands on the live page, part by part, made of what was heard.
const TONES = { finished: "good", running: "good", failed: "bad", lost: "bad", stopped: "warn", stopping: "warn" };
const MOST_LISTED = 100;
const heard = { hello: null, runs: new Map(), id: null, facts: null, now: null, queue: null, gpus: null, log: null, link: "wait", at: null, search: "" };
const NO_CURVES = () => ({ step: [], time: [], eval: { step: [], time: [], loss: [] }, marks: [] });

const badge = (name) => el("span", { class: "badge " + (TONES[name] || "") }, t(name));
const share = (step, total) => (total > 0 ? Math.min(1, step / total) : 0);
const clock = (seconds) => new Date(seconds * 1000).toLocaleTimeString(state.lang ? "zh-CN" : "en-GB");

// Its width is set by script: a style in an attribute would be refused by the page's policy.
function bar(part, label, tone) {
  const fill = el("i", { class: tone || "" });
  fill.style.width = `${100 * Math.max(0, Math.min(1, part || 0))}%`;
  return el("div", { class: "bar", role: "img", "aria-label": label }, fill);
}

// A time of day, with the day where that is not the next hours'.
function timeOf(seconds) {
  const near = Math.abs(seconds - Date.now() / 1000) < 20 * 3600;
  return new Date(seconds * 1000).toLocaleString(state.lang ? "zh-CN" : "en-GB", { ...(near ? {} : { weekday: "short" }), hour: "2-digit", minute: "2-digit" });
}

function runSection() {
  const section = el("section", { id: "run" });
  const { id, facts, now } = heard;
  if (id === null) {
    section.append(el("p", {}, t("no_runs")), el("pre", {}, "iisft train --preset demo"));
    return section;
  }
  if (wanted() !== null) section.append(el("a", { href: "./", id: "follow", onclick: follow_ }, "← ", t("follow")));
  if (!facts) return section.append(el("p", { class: "muted" }, t("run_gone", { name: id }))), section;
  const shown = now || facts;
  const part = share(shown.step, shown.total_steps);
  section.append(el("h1", {}, id, " ", badge(shown.state)), el("p", { class: "muted" }, shown.reason),
    el("div", { class: "progress" }, bar(part, t("steps")), el("b", {}, `${Math.floor(100 * part)} %`)),
    el("div", { class: "cards" }, figures(facts, shown).map(([name, value, more]) => el("div", { class: "card" }, el("span", {}, name), el("b", {}, value), more ? el("small", {}, more) : null))));
  return section;
}

function figures(facts, shown) {
  const said = shown.figures || {};
  const eta = shown.eta_s;
  const rows = [
    [t("step"), `${number(shown.step)} / ${number(shown.total_steps)}`, said.epoch != null ? `${t("epoch")} ${number(said.epoch, 3)}` : ""],
    [t("loss"), number(shown.loss)],
    [t("eval_loss"), number(shown.eval_loss)],
    eta != null ? [t("left"), duration(eta), `${t("ends")} ${timeOf(Date.now() / 1000 + eta)}`] : [t("duration"), duration((facts.ended || heard.at) - facts.started)],
    [t("tokens_per_s"), number(said.tokens_per_s)],
    [t("step_s"), number(said.median_step_s)],
    [t("learning_rate"), number(said.learning_rate)],
    [t("restarts"), number(facts.restarts)],
  ];
  if (facts.measured?.energy_kwh) rows.push([t("energy"), energy(facts)]);
  return rows;
}

function gpusSection() {
  const section = el("section", { id: "gpus" }, el("h2", {}, t("gpus")));
  if (heard.gpus && !heard.gpus.length) section.append(el("p", { class: "muted" }, t("no_gpus")));
  (heard.gpus || []).forEach((gpu, i) => {
    const load = gpu.busy_percent === null ? null : gpu.busy_percent / 100;
    const used = gpu.memory_used_gib === null || !gpu.memory_total_gib ? null : gpu.memory_used_gib / gpu.memory_total_gib;
    const name = `${i}  ${gpu.name || gpu.vendor}`;
    const said = [[gpu.temperature_c, "°C"], [gpu.power_w, "W"]].filter(([value]) => value !== null).map(([value, unit]) => `${value.toFixed(0)} ${unit}`);
    section.append(el("div", { class: "gpu" },
      el("div", { class: "gpu-head" }, el("b", { title: name }, name), gpu.throttled ? el("span", { class: "badge bad" }, t("too_hot")) : null, el("span", {}, said.join(" · "))),
      meter(t("load"), load, load === null ? t("unknown") : `${gpu.busy_percent.toFixed(0)} %`),
      meter(t("memory"), used, `${gpu.memory_used_gib === null ? "?" : gpu.memory_used_gib.toFixed(1)} / ${gpu.memory_total_gib === null ? "?" : gpu.memory_total_gib.toFixed(1)} GiB`)));
  });
  return section;
}

const meter = (name, part, said) => el("div", { class: "meter" }, el("span", {}, name), bar(part, `${name} ${said}`, part > 0.97 ? "full" : ""), el("span", {}, said));

function queueSection() {
  const { paused, runs } = heard.queue || { runs: [] };
  if (!runs.length) return el("section", { id: "queue" });
  return el("section", { id: "queue" }, el("h2", {}, t("queue"), paused ? el("span", { class: "badge warn" }, t("queue_paused")) : null), runs.map(queueLine));
}

const OVER = new Set(["finished", "failed", "stopped"]);

function queueLine(row) {
  const facts = [row.position === null || row.starts === null ? null : `${t("starts")} ${timeOf(row.starts)}`, row.ends === null ? null : `${t(OVER.has(row.state) ? "ended" : "ends")} ${timeOf(row.ends)}`];
  return el("a", lineOf(row.id),
    el("div", {}, el("b", {}, row.position === null ? row.id : `${row.position}. ${row.id}`), badge(row.state)),
    el("small", {}, facts.filter(Boolean).join(" · ")), row.why ? el("small", { class: "why" }, row.why) : null);
}

const lineOf = (id) => ({ class: "line" + (id === heard.id ? " chosen" : ""), href: `?run=${encodeURIComponent(id)}`, onclick: (event) => choose(event, id) });

function runsSection() {
  const find = el("input", { type: "search", id: "find", placeholder: t("search_runs"), "aria-label": t("search_runs"), value: heard.search,
    oninput: (event) => { heard.search = event.target.value; renderRuns(); } });
  return el("section", { id: "runs" }, el("h2", {}, t("runs"), " ", el("small", { class: "muted", id: "howmany" })), find, el("div", { id: "runlist" }));
}

// Those that train first, then those that wait, then the rest; of each the newest first.
const RANK = { running: 0, stopping: 0, pending: 0, queued: 1 };
const rank = (row) => RANK[row.state] ?? 2;

function renderRuns() {
  const search = heard.search.toLowerCase();
  const fitting = [...heard.runs.values()].filter((row) => row.id.toLowerCase().includes(search) || row.state.includes(search) || row.preset.toLowerCase().includes(search));
  fitting.sort((a, b) => rank(a) - rank(b) || (b.started || 0) - (a.started || 0) || (a.id < b.id ? 1 : -1));
  const rest = fitting.length - MOST_LISTED;
  document.getElementById("howmany").textContent = number(heard.runs.size);
  document.getElementById("find").hidden = heard.runs.size <= 8;
  document.getElementById("runlist").replaceChildren(
    ...fitting.slice(0, MOST_LISTED).map(runLine),
    ...(rest > 0 ? [el("p", { class: "muted" }, t("more_runs", { count: number(rest) }))] : []),
    ...(fitting.length || !search ? [] : [el("p", { class: "muted" }, t("no_such_run"))]));
}

function runLine(row) {
  const part = share(row.step, row.total_steps);
  const facts = [row.step || row.total_steps ? `${number(row.step)}/${number(row.total_steps)}` : null, row.loss === null ? null : `${t("loss")} ${number(row.loss)}`, row.eta_s === null ? null : `${duration(row.eta_s)} ${t("left")}`];
  return el("a", lineOf(row.id),
    el("div", {}, el("b", {}, row.id), badge(row.state)),
    row.live ? bar(part, t("steps")) : null,
    el("small", {}, facts.filter(Boolean).join(" · ")));
}

function findingsSection() {
  const section = el("section", { id: "findings" }, el("h2", {}, t("findings")));
  const found = heard.facts ? [...heard.facts.findings].reverse() : [];
  const tone = { error: "bad", warn: "warn" };
  section.append(found.length
    ? el("ul", { class: "sentences" }, found.map((each) => el("li", { class: tone[each.severity] || "plain" }, el("div", {}, text(each.message)), each.fix ? el("code", {}, `${t("fix")}: ${text(each.fix)}`) : null)))
    : el("p", { class: "muted" }, t("no_findings")));
  return section;
}

const logSection = () => el("section", { id: "log" }, el("h2", {}, t("log")), el("pre", { tabindex: 0 }));

// It stays at its end unless the reader has scrolled up, and stands still while they mark something.
function renderLog() {
  const box = document.querySelector("#log pre");
  const marked = getSelection();
  if (!marked.isCollapsed && box.contains(marked.anchorNode)) return;
  const atEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 30;
  box.textContent = heard.log?.length ? heard.log.join("\n") : t("no_log");
  if (atEnd) box.scrollTop = box.scrollHeight;
}
