"use strict";
// Every prediction beside its reference: filter, search, step with the keyboard, judge.
const OUTCOMES = ["right", "wrong", "differs", "error", "invalid_json", "empty", "cut_off", "repeated"];
let verdicts = {};
let found = [];

const verdictKey = () => `iisft-verdicts:${report.runs.map((run) => `${run.facts.id}:${run.facts.started}`).join("+")}`;
const judgedKey = (place) => [group().data, answers().name, group().rows[place].row].join("\n");

function loadVerdicts() {
  try {
    verdicts = JSON.parse(stored(verdictKey()) || "{}");
  } catch (error) {
    verdicts = {};
  }
}

function fits(place) {
  const set = answers(), answer = set.answers[place], row = group().rows[place];
  if (!answer) return false;
  if (state.filter === "flipped" ? !flipped(place) : state.filter === "judged" ? !verdicts[judgedKey(place)] : state.filter !== "all" && !answer[1].includes(state.filter)) return false;
  if (state.classes && (row.label !== state.classes[0] || answer[2] !== state.classes[1])) return false;
  const words = state.search.toLowerCase();
  return !words || [row.prompt, row.reference, answer[0]].some((each) => each && each.toLowerCase().includes(words));
}

function flipped(place) {
  const seen = new Set(group().sets.map((set) => set.answers[place]).filter(Boolean).map((answer) => answer[1].includes("right")));
  return seen.size > 1;
}

function predictionsSection() {
  const section = el("section", { id: "predictions" }, el("h2", {}, t("predictions")));
  if (!answers()) return section;
  const places = group().rows.map((_, place) => place);
  found = places.filter(fits);
  if (!found.includes(state.place)) state.place = found.length ? found[0] : null;
  const total = answers().counts.rows, there = Object.keys(answers().answers).length;
  if (there < total) section.append(el("p", { class: "muted" }, t("sampled", { shown: there, total })));
  section.append(filterBar(places), el("p", { class: "muted" }, t("keys")));
  section.append(el("div", { class: "browser" }, rowList(), el("div", { id: "detail" })));
  section.append(el("p", { class: "tools" },
    el("button", { id: "export", onclick: exportVerdicts }, t("export")), el("span", { class: "muted" }, t("export_hint"))));
  return section;
}

function filterBar(places) {
  const set = answers();
  const count = (name) => places.filter((place) => set.answers[place] && set.answers[place][1].includes(name)).length;
  const names = OUTCOMES.filter((name) => count(name));
  const button = (name, label) => el("button", {
    class: "chip" + (state.filter === name && !state.classes ? " chosen" : ""), "data-filter": name,
    onclick: () => { Object.assign(state, { filter: name, classes: null, place: null }); renderPart("predictions"); },
  }, label);
  const bar = el("div", { class: "tools" }, button("all", `${t("all")} ${Object.keys(set.answers).length}`),
    names.map((name) => button(name, `${t(name)} ${count(name)}`)));
  if (group().sets.length > 1) bar.append(button("flipped", `${t("flipped")} ${places.filter(flipped).length}`));
  bar.append(button("judged", t("judged")));
  if (state.classes) {
    bar.append(el("button", { class: "chip chosen", onclick: () => { state.classes = null; renderPart("predictions"); } },
      `${state.classes[0]} → ${state.classes[1]} ✕`));
  }
  if (group().sets.length > 1) {
    bar.append(el("select", { "aria-label": t("set"), onchange: (event) => selectSet(+event.target.value) },
      group().sets.map((each, i) => el("option", { value: i, selected: i === state.set }, each.name))));
  }
  bar.append(el("input", {
    type: "search", id: "search", placeholder: t("search"), value: state.search,
    oninput: (event) => { state.search = event.target.value; refreshList(); },
  }));
  bar.append(el("span", { class: "muted", id: "shown" }, t("shown_of", { shown: found.length, total: Object.keys(set.answers).length })));
  return bar;
}

function refreshList() {
  found = group().rows.map((_, place) => place).filter(fits);
  if (!found.includes(state.place)) state.place = found.length ? found[0] : null;
  document.getElementById("rowlist").replaceWith(rowList());
  document.getElementById("shown").textContent = t("shown_of", { shown: found.length, total: Object.keys(answers().answers).length });
  showDetail();
}

function rowList() {
  const list = el("ol", { id: "rowlist", tabindex: 0 });
  if (!found.length) list.append(el("li", { class: "muted" }, t("none_found")));
  for (const place of found) list.append(rowItem(place));
  return list;
}

function rowItem(place) {
  const [prediction, words] = answers().answers[place], verdict = verdicts[judgedKey(place)];
  const tone = words.includes("error") ? "warn" : words.includes("wrong") ? "bad" : words.includes("right") ? "good" : "plain";
  return el("li", {
    class: `item ${tone}` + (place === state.place ? " chosen" : ""), "data-place": place, onclick: () => select(place),
  }, el("b", {}, String(group().rows[place].row)), " ", (prediction || "").slice(0, 90),
  verdict ? el("i", {}, verdict.verdict === "good" ? " ✓" : verdict.verdict === "bad" ? " ✗" : " ✎") : null);
}

function select(place) {
  const list = document.getElementById("rowlist");
  list.querySelector(".chosen")?.classList.remove("chosen");
  state.place = place;
  const item = list.querySelector(`[data-place="${place}"]`);
  item?.classList.add("chosen");
  item?.scrollIntoView({ block: "nearest" });
  showDetail();
}

function showDetail() {
  const box = document.getElementById("detail");
  if (!box) return;
  box.replaceChildren();
  if (state.place === null) return;
  const row = group().rows[state.place], [prediction, words, label] = answers().answers[state.place];
  const badges = words.map((word) => el("span", { class: "badge " + ({ right: "good", wrong: "bad" }[word] || "warn") }, t(word)));
  if (row.label) badges.push(el("span", { class: "badge" }, `${row.label} → ${label || "-"}`));
  const one = parsed(row.reference || ""), other = parsed(prediction || "");
  const byField = one && other && state.diff !== "words";
  box.append(el("div", { class: "head" }, el("h3", {}, `${t("row")} ${row.row}`), badges,
    one && other ? el("button", { id: "diff", onclick: switchDiff }, byField ? t("as_words") : t("as_fields")) : null));
  box.append(verdictBar());
  if (words.includes("error")) box.append(pair(row.reference, plain(row.reference), plain(prediction)));
  else if (byField) box.append(diffFields(one, other));
  else if (row.reference === null) box.append(el("h4", {}, t("prediction")), plain(prediction));
  else box.append(pair(row.reference, ...diffText(row.reference, prediction || "")));
  others().forEach((each) => box.append(each));
  if (row.prompt !== null) {
    box.append(el("details", { open: true }, el("summary", {}, `${t("prompt")} (${row.prompt.length} ${t("characters")})`), plain(row.prompt)));
  }
}

const plain = (source) => el("div", { class: "text" }, source === null ? "-" : source);

function pair(reference, left, right) {
  return el("div", { class: "pair" }, el("div", {}, el("h4", {}, t("reference")), left), el("div", {}, el("h4", {}, t("prediction")), right));
}

function others() {
  return group().sets.flatMap((set, i) => {
    const answer = i !== state.set && set.answers[state.place];
    if (!answer) return [];
    const tone = answer[1].includes("right") ? "good" : answer[1].includes("error") ? "warn" : "bad";
    return [el("details", { class: "other" }, el("summary", {}, set.name, " ", el("span", { class: "badge " + tone }, t(answer[1][0] || "prediction"))), plain(answer[0]))];
  });
}

function switchDiff() {
  state.diff = state.diff === "words" ? "auto" : "words";
  showDetail();
}

function verdictBar() {
  const verdict = verdicts[judgedKey(state.place)] || {};
  const button = (name) => el("button", { class: `chip ${name}` + (verdict.verdict === name ? " chosen" : ""), "data-verdict": name, onclick: () => decide(name) }, t(name));
  return el("div", { class: "tools verdict" }, button("good"), button("bad"),
    el("input", { type: "text", id: "note", placeholder: t("note"), value: verdict.note || "", onchange: (event) => note(event.target.value) }));
}

function decide(name) {
  if (state.place === null) return;
  const old = verdicts[judgedKey(state.place)] || {};
  keep({ ...old, verdict: old.verdict === name ? null : name });
}

const note = (words) => keep({ ...(verdicts[judgedKey(state.place)] || {}), note: words });

function keep(verdict) {
  const key = judgedKey(state.place);
  if (verdict.verdict || verdict.note) verdicts[key] = verdict;
  else delete verdicts[key];
  stored(verdictKey(), JSON.stringify(verdicts));
  document.querySelector(`#rowlist [data-place="${state.place}"]`)?.replaceWith(rowItem(state.place));
  showDetail();
}

function exportLines() {
  return Object.entries(verdicts).map(([key, verdict]) => {
    const [data, set, number_] = key.split("\n");
    const sets = report.answers.find((each) => each.data === data);
    const place = sets ? sets.rows.findIndex((row) => String(row.row) === number_) : -1;
    const answer = sets?.sets.find((each) => each.name === set)?.answers[place];
    return JSON.stringify({
      data, predictions: set, row: +number_, verdict: verdict.verdict || null, note: verdict.note || "",
      prompt: sets?.rows[place]?.prompt ?? null, reference: sets?.rows[place]?.reference ?? null, prediction: answer ? answer[0] : null,
    });
  });
}

function exportVerdicts() {
  const link = el("a", { download: `${report.runs[0].facts.id}-verdicts.jsonl` });
  link.href = URL.createObjectURL(new Blob([exportLines().map((line) => line + "\n").join("")], { type: "application/jsonl" }));
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = ["INPUT", "SELECT", "TEXTAREA"].includes(event.target.tagName) && event.target.type !== "range";
  if (typing) {
    if (event.key === "Escape" || (event.key === "Enter" && event.target.id === "note")) event.target.blur();
    return;
  }
  if (!answers()) return;
  const at = found.indexOf(state.place);
  const actions = {
    j: () => found.length && select(found[Math.min(at + 1, found.length - 1)]),
    k: () => found.length && select(found[Math.max(at - 1, 0)]),
    g: () => decide("good"),
    b: () => decide("bad"),
    d: switchDiff,
    n: () => document.getElementById("note")?.focus(),
    "/": () => document.getElementById("search")?.focus(),
  };
  if (!actions[event.key]) return;
  event.preventDefault();
  actions[event.key]();
}
