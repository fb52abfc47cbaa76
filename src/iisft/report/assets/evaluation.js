"use strict";
// Figures beside trivial answers: sentences first, then dots with intervals, the confusion matrix, the fields.
const FIGURES = ["accuracy", "balanced_accuracy", "macro_f1", "exact_match", "valid_json", "schema_valid", "bleu4", "rouge1", "rouge2", "rougel", "chrf"];
const MARKS = ["◆", "▲", "■", "●", "✚", "✖"];

const group = () => report.answers[state.group];
const answers = () => group() && group().sets[state.set];

function evaluationSection() {
  const section = el("section", { id: "evaluation" }, el("h2", {}, t("evaluation")));
  if (!report.answers.length) {
    const run = report.runs[0].facts.id;
    section.append(el("p", { class: "muted" }, t("no_predictions")), el("pre", {}, `iisft predict ${run} --data NAME\niisft report ${run}`));
    return section;
  }
  section.append(pickers());
  const compared = report.comparisons[state.group];
  if (group().sets.length > 1) {
    section.append(el("h3", {}, t(report.runs.length > 1 ? "compared_runs" : "compared")));
    if (compared) section.append(sentences(compared.sentences[language()]));
    section.append(sideBySide(compared));
  }
  const set = answers();
  section.append(el("h3", {}, set.name), sentences([...set.findings, ...set.sentences[language()]]), forest(set));
  if (Object.keys(set.sources).length) section.append(bySource(set));
  if (set.metrics.confusion) section.append(confusion(set));
  if (set.metrics.fields && Object.keys(set.metrics.fields).length) section.append(fields(set));
  return section;
}

function pickers() {
  const tools = el("div", { class: "tools" });
  const choose = (name, options, chosen, onchange) => el("label", {}, t(name), " ",
    el("select", { id: "pick-" + name, onchange }, options.map((option, i) => el("option", { value: i, selected: i === chosen }, option))));
  if (report.answers.length > 1) {
    tools.append(choose("dataset", report.answers.map((each) => each.data), state.group, (event) => {
      Object.assign(state, { group: +event.target.value, set: 0, place: null, classes: null, filter: "all" });
      renderAll();
    }));
  }
  if (group().sets.length > 1) {
    tools.append(choose("set", group().sets.map((set) => set.name), state.set, (event) => selectSet(+event.target.value)));
  }
  return tools;
}

function selectSet(set) {
  state.set = set;
  renderPart("evaluation");
  renderPart("predictions");
}

function sideBySide(compared) {
  const sets = group().sets;
  const shown = FIGURES.filter((name) => sets.some((set) => name in set.metrics));
  const rows = sets.map((set, i) => el("tr", { class: "pick" + (i === state.set ? " chosen" : ""), onclick: () => selectSet(i) }, cells([
    el("span", {}, set.name, compared && compared.best === set.name ? el("b", { class: "badge good" }, t("best")) : null),
    number(set.losses.step), number(set.losses.train_loss), number(set.losses.eval_loss), number(set.counts.generation_errors),
    ...shown.map((name) => percent(set.metrics[name])),
  ])));
  return table([t("set"), t("step"), t("train_loss"), t("eval_loss"), t("errors"), ...shown.map((name) => t(name))], rows, "numbers");
}

function bySource(set) {
  const sources = Object.entries(set.sources);
  const shown = FIGURES.filter((name) => sources.some(([, each]) => name in each.metrics));
  const rows = sources.map(([name, each]) => el("tr", {}, cells([name, number(each.rows), ...shown.map((figure) => percent(each.metrics[figure]))])));
  return el("div", {}, el("h3", {}, t("by_source")), table([t("dataset"), t("rows"), ...shown.map((name) => t(name))], rows, "numbers"));
}

function baselineName(name) {
  return name.startsWith("always ") ? t("always", { name: shortLabel(name.slice(7)) }) : t(name);
}

function shortLabel(name) {
  const keys = name.split("+");
  return keys.length <= 3 ? name : `${keys.slice(0, 2).join("+")}+... (${keys.length} keys)`;
}

function forest(set) {
  const rivals = Object.keys(set.baselines);
  const rows = FIGURES.filter((name) => name in set.metrics).map((name) => {
    const [low, high] = set.metrics.intervals[name] || [set.metrics[name], set.metrics[name]];
    return el("tr", {}, cells([
      t(name), percent(set.metrics[name]), `${percent(low)} - ${percent(high)}`,
      dots(set.metrics[name], low, high, rivals.map((rival) => set.baselines[rival][name])),
      ...rivals.map((rival) => percent(set.baselines[rival][name])),
    ]));
  });
  const headers = [t("figure"), t("model") + " %", t("interval"), "0 - 100 %", ...rivals.map((rival, i) => `${MARKS[i % MARKS.length]} ${baselineName(rival)}`)];
  return table(headers, rows, "numbers forest");
}

function dots(value, low, high, rivals) {
  const at = (rate) => 6 + 188 * rate;
  const drawing = svg("svg", { width: 200, height: 22, role: "img" });
  drawing.append(svg("line", { x1: 6, x2: 194, y1: 11, y2: 11, class: "axis" }));
  rivals.forEach((rival, i) => {
    if (rival === undefined) return;
    const mark = svg("text", { x: at(rival), y: 15, "text-anchor": "middle", class: "rival" });
    mark.append(MARKS[i % MARKS.length]);
    drawing.append(mark);
  });
  drawing.append(svg("line", { x1: at(low), x2: at(high), y1: 11, y2: 11, class: "whisker" }));
  drawing.append(svg("circle", { cx: at(value), cy: 11, r: 5, class: "dot" }));
  return drawing;
}

function confusion(set) {
  const matrix = set.metrics.confusion;
  const columns = [...new Set([...Object.keys(matrix), ...Object.values(matrix).flatMap((row) => Object.keys(row))])];
  const rows = Object.entries(matrix).map(([reference, row]) => {
    const total = Object.values(row).reduce((sum, value) => sum + value, 0);
    const figures = set.metrics.per_class[reference];
    return el("tr", {},
      el("th", { scope: "row" }, shortLabel(reference)),
      columns.map((column) => {
        const count = row[column] || 0;
        const kind = column === reference ? "hit" : "miss";
        return el("td", { class: `cell ${kind}`, style: `--share:${total ? count / total : 0}`, onclick: () => showClasses(reference, column), title: t("confusion_hint") }, String(count));
      }),
      cells([percent(figures.recall), percent(figures.precision), percent(figures.f1)]));
  });
  return el("div", {}, el("h3", {}, t("confusion")), el("p", { class: "muted" }, t("confusion_hint")),
    table(["", ...columns.map(shortLabel), t("recall") + " %", t("precision") + " %", t("f1") + " %"], rows, "numbers confusion"));
}

function showClasses(reference, column) {
  Object.assign(state, { classes: [shortLabel(reference), shortLabel(column)], filter: "all", search: "", place: null });
  renderPart("predictions");
  document.getElementById("predictions").scrollIntoView({ behavior: "smooth" });
}

function fields(set) {
  const rows = Object.entries(set.metrics.fields).map(([pointer, each]) => el("tr", {}, cells([
    pointer.slice(1), number(each.rows), number(each.missing), percent(each.exact), percent(each.exact_when_present),
    percent(each.majority), percent(each.list_f1), number(each.mean_abs_error, 3),
  ])));
  const names = ["field", "rows", "missing", "exact", "exact_when_present", "majority", "list_f1", "mean_abs_error"];
  return el("details", { open: rows.length <= 12 }, el("summary", {}, t("fields")), table(names.map((name) => t(name)), rows, "numbers"));
}
