"use strict";
// What ran: asked and observed, the preset with its reasons, model, data, hardware, versions.
function setupSection() {
  const section = el("section", { id: "setup" }, el("h2", {}, t("setup")));
  for (const run of report.runs) {
    if (report.runs.length > 1) section.append(el("h3", {}, run.facts.id));
    section.append(el("div", { class: "columns" }, proof(run.facts), about(run.facts)), presetTable(run.facts));
  }
  return section;
}

function proof(facts) {
  const rows = facts.proof.map((each) => el("tr", { class: each.differs ? "tone-error" : "" }, cells([
    each.name.replaceAll("_", " "), each.expected === null ? "-" : text(each.expected), each.observed === null && each.expected !== null ? t("not_observed") : text(each.observed),
  ])));
  return el("div", {}, el("h3", {}, t("proof")), table(["", t("asked"), t("observed")], rows));
}

function about(facts) {
  const pairs = [
    [t("model"), `${text(facts.model.id)} (${text(facts.model.architecture)}, ${number(facts.model.parameters)} ${t("parameters")})`],
    [t("hardware"), facts.gpus.length ? facts.gpus.join(", ") : "CPU"],
    ...facts.data.flatMap(dataAccount),
    [t("started"), moment(facts.started)], [t("ended"), moment(facts.ended)],
    ...(facts.measured?.energy_kwh ? [[t("energy"), energy(facts)]] : []),
    [t("folder"), facts.run_dir],
    ["git", facts.git_commit ? facts.git_commit.slice(0, 12) : "-"],
    ...Object.entries(facts.versions).filter(([, version]) => version).map(([name, version]) => [name, version]),
  ];
  return el("div", {}, el("h3", {}, t("versions")), table(["", ""], pairs.map((values) => el("tr", {}, cells(values)))));
}

function energy(facts) {
  const cost = facts.energy_cost === null ? "" : `, ${facts.energy_cost.toFixed(2)} ${t("at the price of a kWh")}`;
  return `${number(facts.measured.energy_kwh)} kWh${cost}`;
}

// A dataset's line, and below it whatever else the run has recorded of it: what was cut, fitted or left out.
function dataAccount(data) {
  const { name, rows, sha256, ...more } = data;
  const own = [t("data"), `${text(name)}: ${number(rows)} ${t("rows")}, sha256 ${String(sha256).slice(0, 12)}`];
  const rest = Object.entries(more).filter(([, value]) => value !== null && value !== "");
  return [own, ...rest.map(([key, value]) => [`${text(name)} ${key.replaceAll("_", " ")}`, shallow(value)])];
}

function shallow(value) {
  if (value === null || typeof value !== "object" || Array.isArray(value)) return text(value);
  return Object.entries(value).map(([key, inner]) => `${key.replaceAll("_", " ")} ${text(inner)}`).join(", ");
}

function presetTable(facts) {
  const rows = facts.preset.map((each) => el("tr", { class: each.changed ? "tone-warn" : "" }, cells([
    each.key, text(each.value), el("span", {}, each.changed ? el("b", { class: "badge warn" }, t("changed")) : null, " ", each.reason || each.meaning),
  ])));
  return el("details", {}, el("summary", {}, `${t("preset")} ${text(facts.preset_name)}: ${t("show_all")}`), table([t("key"), t("value"), t("reason")], rows));
}
