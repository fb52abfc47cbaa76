"use strict";
// Differences of two texts by words (a Chinese character is a word), and of two JSON objects by fields.
const WORD = /[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}]|[\p{L}\p{N}_]+|\s+|./gsu;
const MOST_CELLS = 6e6;

// [[kind, text], ...] with kind "=" both, "-" only in the first, "+" only in the second; longest common subsequence.
function wordDiff(one, other) {
  const a = one.match(WORD) || [], b = other.match(WORD) || [];
  let start = 0, end = 0;
  while (start < a.length && start < b.length && a[start] === b[start]) start++;
  while (end < a.length - start && end < b.length - start && a[a.length - 1 - end] === b[b.length - 1 - end]) end++;
  const parts = [];
  const add = (kind, word) => {
    if (parts.length && parts.at(-1)[0] === kind) parts.at(-1)[1] += word;
    else parts.push([kind, word]);
  };
  a.slice(0, start).forEach((word) => add("=", word));
  middle(a.slice(start, a.length - end), b.slice(start, b.length - end), add);
  a.slice(a.length - end).forEach((word) => add("=", word));
  return parts;
}

function middle(a, b, add) {
  if (a.length * b.length > MOST_CELLS) {
    a.forEach((word) => add("-", word));
    b.forEach((word) => add("+", word));
    return;
  }
  const width = b.length + 1;
  const longest = new Uint16Array((a.length + 1) * width);
  for (let i = a.length - 1; i >= 0; i--) {
    for (let j = b.length - 1; j >= 0; j--) {
      longest[i * width + j] = a[i] === b[j]
        ? longest[(i + 1) * width + j + 1] + 1
        : Math.max(longest[(i + 1) * width + j], longest[i * width + j + 1]);
    }
  }
  let i = 0, j = 0;
  while (i < a.length && j < b.length) {
    if (a[i] === b[j]) add("=", a[i++]), j++;
    else if (longest[(i + 1) * width + j] >= longest[i * width + j + 1]) add("-", a[i++]);
    else add("+", b[j++]);
  }
  while (i < a.length) add("-", a[i++]);
  while (j < b.length) add("+", b[j++]);
}

function diffText(reference, prediction) {
  const parts = wordDiff(reference, prediction);
  const side = (drop, tag, name) => el("div", { class: "text" },
    parts.filter(([kind]) => kind !== drop).map(([kind, words]) => (kind === "=" ? words : el(tag, { class: name }, words))));
  return [side("+", "del", "del"), side("-", "ins", "ins")];
}

function parsed(source) {
  try {
    const value = JSON.parse(source);
    return value !== null && typeof value === "object" && !Array.isArray(value) ? value : null;
  } catch (error) {
    return null;
  }
}

function flat(value, path, found) {
  for (const [key, inner] of Object.entries(value)) {
    const here = path ? `${path}/${key}` : key;
    if (inner !== null && typeof inner === "object" && !Array.isArray(inner) && Object.keys(inner).length) flat(inner, here, found);
    else found.set(here, inner);
  }
  return found;
}

function diffFields(reference, prediction) {
  const one = flat(reference, "", new Map()), other = flat(prediction, "", new Map());
  const show = (value) => (typeof value === "string" ? value : JSON.stringify(value));
  const rows = [...new Set([...one.keys(), ...other.keys()])].map((key) => {
    if (!other.has(key)) return el("tr", { class: "missing" }, cells([key, show(one.get(key)), t("missing")]));
    if (!one.has(key)) return el("tr", { class: "extra" }, cells([key, t("extra"), show(other.get(key))]));
    const [left, right] = [show(one.get(key)), show(other.get(key))];
    if (left === right) return el("tr", { class: "same" }, cells([key, left, right]));
    return el("tr", { class: "different" }, cells([key, ...diffText(left, right)]));
  });
  return table([t("field"), t("reference"), t("prediction")], rows, "fields");
}
