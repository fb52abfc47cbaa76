"use strict";
// Helpers: elements made of text only (nothing here parses HTML), words, numbers, what the reader chose.
const state = {
  lang: (navigator.language || "").startsWith("zh") ? 1 : 0,
  dark: matchMedia("(prefers-color-scheme: dark)").matches,
  smoothing: 0.9,
  byTime: false,
  group: 0,
  set: 0,
  filter: "all",
  classes: null,
  search: "",
  place: null,
  diff: "auto",
};
let report = null;

function el(tag, props, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "value") node.value = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat()) {
    if (child !== null && child !== undefined) node.append(child);
  }
  return node;
}

function svg(tag, props, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(props)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function t(key, values) {
  let text = WORDS[key] ? WORDS[key][state.lang] : key;
  for (const [name, value] of Object.entries(values || {})) text = text.replace(`{${name}}`, () => value);
  return text;
}

const language = () => (state.lang ? "zh" : "en");
const percent = (rate) => (rate === null || rate === undefined ? "-" : (100 * rate).toFixed(1));
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function number(value, digits) {
  if (typeof value !== "number") return text(value);
  if (Number.isInteger(value)) return value.toLocaleString("en-US");
  const size = Math.abs(value);
  return size !== 0 && (size < 1e-3 || size >= 1e6) ? value.toExponential(2) : String(+value.toPrecision(digits || 4));
}

function text(value) {
  if (value === null || value === undefined) return "-";
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}

function duration(seconds) {
  if (!(seconds >= 0)) return "-";
  const parts = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60, Math.floor(seconds) % 60];
  return parts[0] ? `${parts[0]} h ${parts[1]} min` : parts[1] ? `${parts[1]} min ${parts[2]} s` : `${parts[2]} s`;
}

const moment = (seconds) => (seconds ? new Date(seconds * 1000).toLocaleString(state.lang ? "zh-CN" : "en-GB") : "-");

function table(headers, rows, className) {
  return el("div", { class: "scroll" },
    el("table", { class: className || "" },
      el("thead", {}, el("tr", {}, headers.map((header) => el("th", {}, header)))),
      el("tbody", {}, rows)));
}

const cells = (values) => values.map((value) => el("td", {}, value instanceof Node ? value : text(value)));

function sentences(pairs) {
  return el("ul", { class: "sentences" }, pairs.map(([tone, sentence]) => el("li", { class: tone || "plain" }, sentence)));
}

function stored(key, value) {
  try {
    if (value === undefined) return localStorage.getItem(key);
    localStorage.setItem(key, value);
  } catch (error) {
    // a browser that keeps nothing for files still shows the report
  }
  return null;
}

async function unpack() {
  const packed = Uint8Array.from(atob(document.getElementById("data").textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}
