"use strict";
// The found pairs of a curation's report: drawn a page at a time, judged by whoever looks at them,
// and recounted under other thresholds. Names of files only ever become text, never markup.

const data = JSON.parse(document.getElementById("data").textContent);
const PAGE = 12; // pairs
const GAP = 16; // px of the pictures between two of them
const LARGEST = 1.06; // px of the screen for one of a picture
const COLOURS = ["#ffd33d", "#3fd0ff", "#ff7bd5", "#7ee787"];
const OTHER = { duplicate: "clear", clear: "duplicate" };
const STORE = `ssld overrides ${location.pathname}`;

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function shape(tag, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function button(text, work, attributes = {}) {
  const made = element("button", { type: "button", ...attributes }, text);
  made.addEventListener("click", work);
  return made;
}

const many = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;

// Pictures. Pixel centres are whole numbers, so a picture begins at -.5.

function image(number) {
  const { uri, width, height } = data.pictures[number];
  const box = { x: -0.5, y: -0.5, width, height };
  if (!uri) return shape("rect", { ...box, fill: "#e6e8eb" });
  return shape("image", { ...box, href: uri, preserveAspectRatio: "none" });
}

function canvas(width, height, label, ...children) {
  const viewBox = `-0.5 -0.5 ${width} ${height}`;
  // Growing by their widths, all pictures of a row have one scale.
  const style = `flex: ${width} 1 ${0.6 * width}px; max-width: ${LARGEST * width}px`;
  return shape("svg", { viewBox, style, role: "img", "aria-label": label }, ...children);
}

function sideBySide(pair) {
  const [left, right] = pair.pictures.map((number) => data.pictures[number]);
  const height = Math.max(left.height, right.height);
  const tops = [(height - left.height) / 2, (height - right.height) / 2];
  const shift = left.width + GAP;
  const lines = shape("g", { class: "lines" });
  pair.lines.forEach(([x1, y1, x2, y2], i) => {
    const ends = { x1, y1: y1 + tops[0], x2: x2 + shift, y2: y2 + tops[1] };
    const stroke = COLOURS[i % COLOURS.length];
    lines.append(
      shape("line", { ...ends, stroke }),
      shape("circle", { cx: ends.x1, cy: ends.y1, r: 2.5, stroke }),
      shape("circle", { cx: ends.x2, cy: ends.y2, r: 2.5, stroke }),
    );
  });
  return canvas(
    shift + right.width,
    height,
    `both images with ${pair.lines.length} matched points`,
    shape("g", { transform: `translate(0 ${tops[0]})` }, image(pair.pictures[0])),
    shape("g", { transform: `translate(${shift} ${tops[1]})` }, image(pair.pictures[1])),
    lines,
  );
}

function overlay(pair) {
  const [left, right] = pair.pictures.map((number) => data.pictures[number]);
  if (left.why || right.why || !pair.affine) return null;
  const [a, b, c, d, e, f] = pair.affine;
  const moved = shape("g", { transform: `matrix(${a} ${d} ${b} ${e} ${c} ${f})` });
  moved.append(image(pair.pictures[0]));
  const top = shape("g", { class: "top" }, moved);
  const label = "the left image laid onto the right one";
  return canvas(right.width, right.height, label, image(pair.pictures[1]), top);
}

function facts(pair) {
  const words = [];
  if (pair.exact) words.push(`the same ${pair.exact}`);
  if (pair.inliers || !pair.exact) words.push(many(pair.inliers, "inlier"));
  if (!pair.exact) words.push(pair.ncc === null ? "no NCC" : `NCC ${pair.ncc.toFixed(2)}`);
  if (pair.cosine !== null) words.push(`cosine ${pair.cosine.toFixed(2)}`);
  if (pair.mirrored) words.push("mirrored");
  if (pair.by_cosine) words.push("not decided by inliers");
  return words.join(", ");
}

function card(pair, roles, ...tools) {
  const drawn = element("div", { class: "drawn" }, sideBySide(pair));
  const laid = overlay(pair);
  if (laid) drawn.append(laid);
  const verdict = element("span", { class: `pill ${pair.verdict}` }, pair.verdict);
  const words = element("div", { class: "words" }, element("p", {}, verdict, ` ${facts(pair)}`));
  if (pair.overridden) {
    words.append(element("p", { class: "decision" }, "decided by overrides.jsonl"));
  }
  pair.names.forEach((name, i) => {
    const line = element("p", { class: "name" }, element("b", {}, roles[i]), ` ${name}`);
    const { why } = data.pictures[pair.pictures[i]];
    if (why) line.append(element("span", { class: "gone" }, ` ${why}`));
    words.append(line);
  });
  words.append(...tools);
  return element("article", { class: "pair" }, drawn, words);
}

// What somebody said of pairs: the lines of overrides.jsonl, and what is said on this page. There,
// null takes a line back.

const keyOf = (gallery, protected_) => JSON.stringify([gallery, protected_]);
const before = new Map(data.overrides.map((row) => [keyOf(row.gallery, row.protected), row]));
const here = new Map();

function recall() {
  try {
    for (const [key, row] of JSON.parse(localStorage.getItem(STORE) || "[]")) here.set(key, row);
  } catch {
    here.clear(); // no storage, or not ours
  }
}

function remember() {
  try {
    localStorage.setItem(STORE, JSON.stringify([...here]));
  } catch {
    // a page that may store nothing keeps it in memory
  }
}

function judged(pair) {
  const key = keyOf(...pair.names);
  const row = here.has(key) ? here.get(key) : before.get(key);
  return row ? row.verdict : null;
}

function judge(pair, verdict) {
  const key = keyOf(...pair.names);
  const [gallery, protected_] = pair.names;
  const row = judged(pair) === verdict ? null : { gallery, protected: protected_, verdict };
  if (row === null && !before.has(key)) here.delete(key);
  else here.set(key, row);
  remember();
}

function overrides() {
  const rows = [...new Map([...before, ...here]).values()].filter((row) => row !== null);
  return rows.map((row) => `${JSON.stringify(row)}\n`).join("");
}

function download() {
  const blob = new Blob([overrides()], { type: "application/x-ndjson" });
  const link = element("a", { href: URL.createObjectURL(blob), download: "overrides.jsonl" });
  document.body.append(link);
  link.click();
  link.remove();
}

// Thresholds. NCC counts in hundredths.

const now = data.recount && { sure: data.recount.sure, least: data.recount.least, ncc: data.recount.ncc };
const limits = { ...now };

const passes = (inliers, ncc, at) => inliers >= at.sure || (inliers >= at.least && ncc >= at.ncc);

function imagePasses(row, at) {
  for (let i = 2; i < row.length; i += 2) if (passes(row[i], row[i + 1], at)) return true;
  return false;
}

function verdictAt(pair, at) {
  if (pair.fixed) return pair.verdict;
  const ncc = pair.ncc === null ? -1 : Math.floor(pair.ncc * 100 + 1e-3);
  return passes(pair.inliers, ncc, at) ? "duplicate" : "clear";
}

function recounted() {
  const found = { images: data.recount.always[0], more: 0, selected: 0, fewer: 0 };
  for (const row of data.recount.images) {
    const then = imagePasses(row, limits);
    const today = imagePasses(row, now);
    if (then) found.images += row[0];
    if (then && !today) {
      found.more += row[0];
      found.selected += row[1];
    }
    if (today && !then) found.fewer += row[0];
  }
  return found;
}

function showCount() {
  const { images, more, selected, fewer } = recounted();
  const counts = `${images.toLocaleString("en")} gallery ${images === 1 ? "image is a near-duplicate" : "images are near-duplicates"}`;
  let text = `At these thresholds ${counts} (now ${data.recount.now.toLocaleString("en")})`;
  if (more) text += `; ${many(more, "image")} more, ${selected.toLocaleString("en")} of them selected`;
  if (fewer) text += `; ${many(fewer, "image")} fewer`;
  document.getElementById("count").textContent = `${text}.`;
}

function slider(name, text, low, high, shown) {
  const output = element("output");
  const attributes = { type: "range", min: low, max: high, step: 1, id: `slider-${name}` };
  const input = element("input", attributes);
  const show = () => {
    input.value = limits[name];
    output.textContent = shown(limits[name]);
  };
  input.addEventListener("input", () => {
    limits[name] = Number(input.value);
    show();
    changed();
  });
  show();
  return [element("label", {}, element("span", {}, text), input, output), show];
}

function buildSliders() {
  const { fewest, most } = data.recount;
  const whole = (value) => (value === most ? `${value} or more` : String(value));
  const made = [
    slider("sure", "Inliers that are enough alone", fewest, most, whole),
    slider("least", "Inliers that are enough with NCC", fewest, most, whole),
    slider("ncc", "NCC that they need", 0, 100, (value) => (value / 100).toFixed(2)),
  ];
  const reset = () => {
    Object.assign(limits, now);
    for (const [, show] of made) show();
    changed();
  };
  const target = document.getElementById("thresholds");
  target.append(...made.map(([label]) => label), button("Reset", reset));
  target.append(element("p", { id: "count", "aria-live": "polite" }));
}

// The list of pairs, a page at a time.

const FILTERS = {
  "all pairs": () => true,
  duplicate: (pair) => pair.verdict === "duplicate",
  clear: (pair) => pair.verdict === "clear",
  "other at these thresholds": (pair) => verdictAt(pair, limits) !== pair.verdict,
  "not judged yet": (pair) => judged(pair) === null,
  judged: (pair) => judged(pair) !== null,
};
const view = { filter: "all pairs", first: 0 };

function tools(pair) {
  const given = judged(pair);
  const choice = (word, verdict) => {
    const attributes = { class: verdict, "aria-pressed": String(given === verdict) };
    const work = () => {
      judge(pair, verdict);
      showPairs();
    };
    return button(`${word}: ${verdict}`, work, attributes);
  };
  const made = element("p", { class: "choice" });
  made.append(choice("Approve", pair.verdict), choice("Reject", OTHER[pair.verdict]));
  const then = verdictAt(pair, limits);
  if (then === pair.verdict) return [made];
  return [element("p", { class: "decision" }, `at these thresholds: ${then}`), made];
}

function showPairs() {
  const found = data.pairs.filter(FILTERS[view.filter]);
  view.first = Math.max(0, Math.min(view.first, PAGE * Math.floor((found.length - 1) / PAGE)));
  const page = found.slice(view.first, view.first + PAGE);
  const cards = page.map((pair) => card(pair, ["gallery", "protected"], ...tools(pair)));
  document.getElementById("cards").replaceChildren(...cards);
  const last = view.first + page.length;
  const place = found.length ? `${view.first + 1} to ${last} of ${found.length}` : "no such pair";
  for (const pager of document.querySelectorAll(".pager")) {
    pager.querySelector("span").textContent = place;
    pager.querySelector(".back").disabled = view.first === 0;
    pager.querySelector(".on").disabled = last >= found.length;
  }
  const count = overrides().split("\n").length - 1;
  document.getElementById("judged").textContent = many(count, "line");
}

function changed() {
  showCount();
  showPairs();
}

function pager() {
  const turn = (pages) => () => {
    view.first += pages * PAGE;
    showPairs();
    document.getElementById("list").scrollIntoView();
  };
  const back = button("Back", turn(-1), { class: "back" });
  const on = button("Next", turn(1), { class: "on" });
  return element("div", { class: "pager" }, back, element("span"), on);
}

function choose(names, label, work) {
  const made = element("select");
  made.append(...names.map((name) => element("option", { value: name }, name)));
  made.addEventListener("change", () => work(made.value));
  return element("label", {}, `${label} `, made);
}

function buildList() {
  const list = document.getElementById("list");
  const filter = choose(Object.keys(FILTERS), "Show", (name) => {
    Object.assign(view, { filter: name, first: 0 });
    showPairs();
  });
  const overlays = choose(["blend", "checkerboard", "difference"], "Overlay", (name) => {
    document.body.dataset.overlay = name;
  });
  const lines = choose(["lines", "no lines"], "Points", (name) => {
    document.body.dataset.lines = name;
  });
  const bar = element("div", { class: "tools" }, filter, overlays, lines);
  list.append(bar, pager(), element("div", { id: "cards" }), pager());
}

document.body.dataset.overlay = "blend";
recall();
if (data.recount) {
  buildSliders();
  buildList();
  document.getElementById("export").addEventListener("click", download);
  changed();
}
const inside = document.getElementById("inside");
if (inside) inside.append(...data.inside.map((pair) => card(pair, ["dropped", "kept"])));
