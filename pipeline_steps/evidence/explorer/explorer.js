// The explorer. data/*.js put what there is into EXPLORER; this filters, sorts and draws it.
"use strict";
(() => {
const {study, items: parts, rows: opened} = EXPLORER;
const $ = selector => document.querySelector(selector);
const main = $("#list"), linesBox = $("#lines"), one = $("#one"), form = $("#filters");
const GAP = 12, LABEL = 208, BINS = 36;

function el(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "style") made.style.cssText = value;
    else if (name in made && !name.startsWith("aria")) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children.filter(child => child != null));
  return made;
}

// ---- Data: columns with a value for each image, which is known by its place -----------------

const column = {};
for (const name of Object.keys(parts[0] ?? {}))
  column[name] = [].concat(...parts.map(part => part[name]));
const {set, identity, prompt, index, attempt, file, kept, reason, picture} = column;
const numbers = {};
function number(name) {
  if (numbers[name]) return numbers[name];
  const values = column[name] ?? [], made = numbers[name] = new Float32Array(values.length);
  for (let i = 0; i < values.length; i++) made[i] = values[i] ?? NaN;
  return made;
}
const extractor = task => Object.keys(study.extractors)
  .find(name => study.extractors[name].task === task);
const judges = study.judges.map(judge => judge.name);
const kinds = [...new Set(study.sets.map(of => of.paired ? of.column : of.label))];
const kindOf = study.sets.map(of => kinds.indexOf(of.paired ? of.column : of.label));
const colourOf = kinds.map((_, kind) => study.sets[kindOf.indexOf(kind)].colour);
const columnsOfPairs = kinds.map((_, k) => k).filter(k => study.sets[kindOf.indexOf(k)].paired);
const promptSets = [...new Set(study.sets.filter(of => of.paired).map(of => of.prompts))];
const promptSetOf = study.sets.map(of => promptSets.indexOf(of.prompts));

const MEASURED = Object.fromEntries(Object.entries({
  sim: ["Similarity to the person", () => `${S.judge}/own`],
  other: ["Similarity to another", () => `${S.judge}/other_similarity`],
  quality: ["Quality of the face", () => `${extractor("quality")}/quality`],
  yaw: ["Yaw in degrees", () => `${extractor("pose")}/yaw`],
  pitch: ["Pitch in degrees", () => `${extractor("pose")}/pitch`],
}));
const measured = key => number(MEASURED[key][1]());
const SORTS = {
  order: ["person and number", () => null],
  sim: ["similarity to the person", () => measured("sim")],
  other: ["similarity to somebody else", () => measured("other")],
  margin: ["person against somebody else", () => {
    const other = measured("other");
    return measured("sim").map((value, i) => value - other[i]);
  }],
  spread: ["difference between methods", () => measured("sim")],
  quality: ["quality of the face", () => measured("quality")],
  yaw: ["turn of the head", () => measured("yaw").map(Math.abs)],
};

// What prompts share in their set says nothing about an image.
const short = new Map();
const asked = study.sets.map(() => new Set());
for (let i = 0; i < study.count; i++) asked[set[i]].add(prompt[i]);
asked.forEach(found => {
  const used = [...found];
  const phrases = used.map(p => study.prompts[p].split(", "));
  used.forEach((p, k) => short.set(p, used.length < 2 ? study.prompts[p] :
    phrases[k].filter(phrase => !phrases.every(of => of.includes(phrase))).join(", ")));
});

// Images of the same prompt and noise: one row, a cell for each method.
const pairs = [], unpaired = new Map();
{
  const found = new Map();
  for (let i = 0; i < study.count; i++) {
    const of = study.sets[set[i]];
    if (!of.paired) {
      const key = `${identity[i]} ${set[i]}`;
      if (!unpaired.has(key)) unpaired.set(key, {person: identity[i], set: set[i], images: []});
      unpaired.get(key).images.push(i);
      continue;
    }
    const key = [identity[i], promptSetOf[set[i]], index[i], attempt[i]].join();
    if (!found.has(key)) {
      const cells = new Int32Array(kinds.length).fill(-1);
      found.set(key, {person: identity[i], prompts: promptSetOf[set[i]], first: i, cells});
    }
    found.get(key).cells[kindOf[set[i]]] = i;
  }
  pairs.push(...found.values());
  pairs.sort((a, b) => a.person - b.person || a.prompts - b.prompts ||
    index[a.first] - index[b.first] || attempt[a.first] - attempt[b.first]);
}
const addressOf = i => file[i] ? `${study.sets[set[i]].name}/${file[i]}` : `${i}`;
let addresses;
function placeOf(address) {
  addresses ??= new Map(file.map((_, i) => [addressOf(i), i]));
  return addresses.get(address) ?? -1;
}

// ---- State: what is seen, which the address keeps --------------------------------------------

const FIRST = {
  view: "pairs", q: "", person: "", hide: "", prompts: "", state: "", shows: "",
  judge: judges.at(-1), sort: "order", size: "136", open: "",
  ...Object.fromEntries(Object.keys(MEASURED).map(key => [key, ""])),
};
const S = {...FIRST};
let written = "", timer = 0;

function readAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  for (const key of Object.keys(FIRST)) S[key] = given.get(key) ?? FIRST[key];
  if (!judges.includes(S.judge)) S.judge = FIRST.judge;
  if (!(S.sort.replace("-", "") in SORTS)) S.sort = FIRST.sort;
  written = location.hash.slice(1);
}
function writeAddress() {
  clearTimeout(timer);
  const given = new URLSearchParams();
  for (const key of Object.keys(FIRST)) if (S[key] !== FIRST[key]) given.set(key, S[key]);
  written = given.toString();
  if (written !== location.hash.slice(1)) location.replace(`#${written}`);
}
function change(values) {
  Object.assign(S, values);
  clearTimeout(timer);
  timer = setTimeout(writeAddress, 120);  // browsers refuse a page that changes it all the time
  apply();
}
const listed = key => new Set(S[key] ? S[key].split("|") : []);
const ends = key => S[key] ? S[key].split("..").map(Number) : null;

// ---- Filters ----------------------------------------------------------------------------------

function matching() {
  const hidden = listed("hide"), without = listed("prompts");
  const tokens = S.q.toLowerCase().split(/\s+/).filter(Boolean).map(token => {
    const has = texts => texts.map(text => text.toLowerCase().includes(token));
    const sets = has(study.sets.map(of => `${of.label} ${of.paired ? of.column : ""}`));
    return [has(study.prompts), has(study.people), sets, has(study.reasons)];
  });
  const setOk = study.sets.map((of, s) => !hidden.has(kinds[kindOf[s]]) &&
    !(of.paired && without.has(of.prompts)));
  const ranges = Object.keys(MEASURED).filter(ends).map(key => [measured(key), ...ends(key)]);
  const person = study.people.indexOf(S.person), {shows, copy, stranger} = column;
  const why = S.state.startsWith("out:") ? study.reasons.indexOf(S.state.slice(4)) : -1;
  const shown = study.shows.indexOf(S.shows);
  const found = new Uint8Array(study.count);
  for (let i = 0; i < study.count; i++) {
    if (!setOk[set[i]] || (S.person && identity[i] !== person)) continue;
    if (S.state && (S.state === "kept") !== !!kept[i]) continue;
    if (why >= 0 && reason[i] !== why) continue;
    if (S.shows === "copy" ? !copy[i] : S.shows === "stranger" ? !stranger[i] :
      S.shows && shows[i] !== shown) continue;
    if (!ranges.every(([values, low, high]) => values[i] >= low && values[i] <= high)) continue;
    if (!tokens.every(([prompts, people, sets, reasons]) =>
      prompts[prompt[i]] || people[identity[i]] || sets[set[i]] || reasons[reason[i]])) continue;
    found[i] = 1;
  }
  return found;
}

// ---- Lines: what stands beside each other, from top to bottom -----------------------------------

let ok, judged, lines = [], at = {line: 0, place: 0}, drawn = new Map(), wide = 1;

function arrange() {
  const key = S.sort.replace("-", ""), turned = S.sort.startsWith("-");
  const values = SORTS[key][1](), sign = turned ? -1 : 1;
  const by = of => (a, b) => {
    const x = of(a), y = of(b);
    return isNaN(x) ? (isNaN(y) ? 0 : 1) : isNaN(y) ? -1 : sign * (x - y);
  };
  const size = Number(S.size), room = main.clientWidth - 42;
  wide = Math.max(1, Math.floor((room + GAP) / (size + GAP)));
  if (S.view === "grid") {
    let found = [];
    for (let i = 0; i < study.count; i++) if (ok[i]) found.push(i);
    if (values) found.sort(by(i => values[i]));
    else {
      found.sort((a, b) => identity[a] - identity[b] || set[a] - set[b] || a - b);
      if (turned) found.reverse();
    }
    lines = [];
    for (let from = 0; from < found.length; from += wide)
      lines.push({tiles: found.slice(from, from + wide)});
    return;
  }
  const hidden = listed("hide");
  const shown = columnsOfPairs.filter(kind => !hidden.has(kinds[kind]));
  const rows = pairs.filter(row => shown.some(kind => row.cells[kind] >= 0 && ok[row.cells[kind]]))
    .map(row => ({...row, tiles: shown.map(kind => row.cells[kind])}));
  if (values) {
    for (const row of rows) {
      const own = row.tiles.filter(i => i >= 0 && ok[i]).map(i => values[i]).filter(v => v === v);
      row.value = !own.length ? NaN : key === "spread" ? Math.max(...own) - Math.min(...own) :
        own.reduce((sum, value) => sum + value, 0) / own.length;
    }
    rows.sort(by(row => row.value));
    lines = rows;
    return;
  }
  const people = new Map();
  const block = person => {
    if (!people.has(person)) people.set(person, {heads: [], rows: []});
    return people.get(person);
  };
  for (const row of rows) block(row.person).rows.push(row);
  const fit = Math.max(1, Math.floor((room - LABEL) / (size + GAP)));
  for (const of of unpaired.values()) {
    if (hidden.has(kinds[kindOf[of.set]])) continue;
    const own = of.images.filter(i => ok[i]);
    if (!own.length && !people.has(of.person)) continue;
    const first = [...own.filter(i => kept[i]), ...own.filter(i => !kept[i]),
      ...of.images.filter(i => !ok[i] && kept[i])];
    block(of.person).heads.push({head: of, person: of.person, tiles: first.slice(0, fit)});
  }
  const order = [...people.keys()].sort((a, b) => sign * (a - b));
  lines = order.flatMap(person => [...people.get(person).heads, ...people.get(person).rows]);
}

const lineHeight = () => Number(S.size) + 25 + 14;

function apply() {
  ok = matching();
  let found = 0;
  for (const one of ok) found += one;
  const told = found.toLocaleString("en").replaceAll(",", "\u202f");
  const all = study.count.toLocaleString("en").replaceAll(",", "\u202f");
  const cut = study.sets.reduce((sum, of) => sum + of.total, 0) - study.count;
  $("#count").replaceChildren(found === study.count ? `${all} images` : `${told} of ${all} images`,
    ...(cut ? [el("small", {}, `${cut} more are in the study, beyond explore.images`)] : []));
  arrange();
  at = {line: 0, place: 0};
  main.scrollTop = 0;
  redraw();
  if (judged === S.judge) return controls();
  judged = S.judge;  // the ranges are the judge's; images first
  requestAnimationFrame(() => setTimeout(() => {
    const {name} = document.activeElement;
    build();
    controls();
    if (name) form.elements[name]?.focus?.();
  }));
}

function redraw() {
  const root = document.documentElement.style;
  root.setProperty("--tile", `${S.size}px`);
  root.setProperty("--label", `${LABEL}px`);
  root.setProperty("--line-height", `${lineHeight()}px`);
  linesBox.style.height = `${lines.length * lineHeight()}px`;
  $("#none").hidden = lines.length > 0;
  const hidden = listed("hide");
  const shown = columnsOfPairs.filter(kind => !hidden.has(kinds[kind]));
  $("#heads").replaceChildren(...(S.view === "grid" || !lines.length ? [] : [
    el("span", {}, "Same prompt, same noise"),
    ...shown.map(kind => el("span", {},
      el("i", {className: "dot", style: `background:${colourOf[kind]}`}), kinds[kind])),
  ]));
  for (const line of drawn.values()) line.remove();
  drawn = new Map();
  draw();
}

function draw() {
  const height = lineHeight();
  const first = Math.max(0, Math.floor(main.scrollTop / height) - 2);
  const last = Math.min(lines.length, Math.ceil((main.scrollTop + main.clientHeight) / height) + 2);
  for (const [place, line] of drawn) {
    if (place >= first && place < last) continue;
    line.remove();
    drawn.delete(place);
  }
  for (let place = first; place < last; place++) {
    if (drawn.has(place)) continue;
    const line = drawLine(lines[place], place);
    line.style.transform = `translateY(${place * height}px)`;
    drawn.set(place, line);
    linesBox.append(line);
  }
}

function drawLine(line, place) {
  const tiles = line.tiles.map((i, column) => {
    if (i < 0) return el("span", {className: "tile"});
    const made = tile(i, S.view === "grid");
    made.classList.toggle("faded", !ok[i]);
    made.dataset.column = column;
    made.tabIndex = place === at.line && column === at.place ? 0 : -1;
    return made;
  });
  const made = el("div", {className: line.head ? "line person" : "line"});
  made.dataset.line = place;
  if (line.head) made.append(headLabel(line.head));
  else if (S.view !== "grid") made.append(rowLabel(line));
  made.append(...tiles);
  return made;
}

function headLabel(head) {
  const name = study.people[head.person], about = study.about[name] ?? {};
  const of = study.sets[head.set], count = head.images.filter(i => kept[i]).length;
  const facts = [about.gender, `${count} ${of.name === "real" ? "photographs" : `of ${of.label}`}`];
  return el("div", {className: "label"}, el("b", {}, name),
    el("small", {}, facts.filter(Boolean).join(" · ")));
}

function rowLabel(row) {
  const first = row.first, again = attempt[first] ? `, attempt ${attempt[first] + 1}` : "";
  return el("div", {className: "label"},
    el("small", {}, `${study.people[row.person]} · ${promptSets[row.prompts]} ${index[first]}${again}`),
    el("span", {className: "prompt"}, short.get(prompt[first]) ?? ""),
    S.sort.endsWith("spread") && row.value === row.value ?
      el("small", {}, `differ by ${row.value.toFixed(2)}`) : null);
}

function pic(i) {
  const across = study.across, each = across * across, step = 100 / (across - 1);
  const made = el("span", {className: "pic"}), place = i % each;
  if (picture[i]) made.style.cssText =
    `background:url("sheets/${Math.floor(i / each)}.jpg") ${place % across * step}% ` +
    `${Math.floor(place / across) * step}%/${across * 100}%`;
  return made;
}

function told(i) {
  const of = study.sets[set[i]], value = measured("sim")[i];
  return [study.people[identity[i]], of.paired ? `${of.column}, ${of.prompts} ${index[i]}` : of.label,
    short.get(prompt[i]), kept[i] ? "" : `left out: ${study.reasons[reason[i]]}`,
    value === value ? `similarity ${value.toFixed(2)}` : ""].filter(Boolean).join("; ");
}

function tile(i, named) {
  const value = measured("sim")[i], known = value === value, of = study.sets[set[i]];
  const bar = el("span", {className: "bar"}, el("i", {style: `width:${100 * Math.max(0, value)}%`}));
  const image = pic(i);
  if (!kept[i]) image.append(el("span", {className: "why"}, study.reasons[reason[i]] || "left out"));
  const caption = el("span", {className: "cap"}, known ? el("b", {}, value.toFixed(2)) : null,
    known && !named ? bar : null,
    named ? el("i", {className: "dot", style: `background:${of.colour}`}) : null,
    named ? el("span", {className: "who"}, study.people[identity[i]]) : null);
  const made = el("button", {type: "button", className: kept[i] ? "tile" : "tile out",
    title: told(i), "aria-label": told(i)}, image, caption);
  made.style.setProperty("--colour", of.colour);
  made.dataset.i = i;
  return made;
}

// ---- Moving about -------------------------------------------------------------------------------

function mark(line, place) {
  const tileAt = () => drawn.get(at.line)?.querySelector(`[data-column="${at.place}"]`);
  const before = tileAt();
  if (before) before.tabIndex = -1;
  at = {line, place};
  const height = lineHeight(), top = line * height, room = main.clientHeight - height - 60;
  if (main.scrollTop > top) main.scrollTop = top;
  if (main.scrollTop < top - room) main.scrollTop = top - room;
  draw();
  const now = tileAt();
  if (!now) return;
  now.tabIndex = 0;
  if (!one.open) now.focus({preventScroll: true});
}

function move(across, down) {
  let {line, place} = at;
  if (down) {
    line += down;
    if (!lines[line]) return false;
    const there = lines[line].tiles.map((i, column) => i < 0 ? Infinity : Math.abs(column - place));
    place = there.indexOf(Math.min(...there));
  } else {
    do {
      place += across;
      if (place < 0 || place >= lines[line].tiles.length) {
        line += across;
        if (!lines[line]) return false;
        place = across > 0 ? 0 : lines[line].tiles.length - 1;
      }
    } while (lines[line].tiles[place] < 0);
  }
  mark(line, place);
  return true;
}

const ARROWS = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]};
document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey || $("#help").open) return;
  const field = event.target.closest("input, select");
  if (field) {
    if (event.key === "Escape" && field.id === "q") change({q: field.value = ""});
    if (event.key === "Escape" || (event.key === "Enter" && field.id === "q")) {
      field.blur();
      event.preventDefault();
    }
    return;
  }
  if (event.key === "/" && !one.open) {
    event.preventDefault();
    $("#q").select();
  } else if (event.key in ARROWS && lines.length) {
    event.preventDefault();
    const inside = one.open || document.activeElement.closest("#lines");
    if (!inside) mark(at.line, at.place);
    else if (move(...ARROWS[event.key]) && one.open) show(lines[at.line].tiles[at.place]);
  }
});

// ---- One image ------------------------------------------------------------------------------------

const link = (...path) => path.join("/").split("/").map(encodeURIComponent).join("/");
const loading = {};

function rowsOf(i) {
  const part = Math.floor(i / study.rows);
  loading[part] ??= new Promise((done, failed) => {
    const script = el("script", {src: `data/rows-${part}.js`, onload: done, onerror: failed});
    document.head.append(script);
  });
  return loading[part].then(() => opened[part][i % study.rows]);
}

function show(i) {
  const of = study.sets[set[i]], name = study.people[identity[i]];
  const jump = (other, caption) => {
    const made = tile(other, false);
    made.lastChild.replaceChildren(...caption);
    made.classList.remove("faded");
    return made;
  };
  const judged = key => column[`${S.judge}/${key}`]?.[i];
  const row = pairs.find(row => row.cells.includes(i));
  const together = !row ? [] : columnsOfPairs.filter(kind => row.cells[kind] >= 0).map(kind => {
    const other = row.cells[kind], value = measured("sim")[other];
    const made = jump(other, [kinds[kind], value === value ? ` ${value.toFixed(2)}` : ""]);
    if (other === i) made.setAttribute("aria-current", "true");
    return made;
  });
  const near = [];
  if (judged("photo") >= 0) near.push(jump(judged("photo"), ["Nearest photograph ",
    el("b", {}, judged("photo_similarity").toFixed(2)), ` ${study.people[identity[judged("photo")]]}`]));
  if (judged("other_photo") >= 0) near.push(jump(judged("other_photo"), ["Nearest other person ",
    el("b", {}, judged("other_similarity").toFixed(2)), ` ${study.people[judged("other")]}`]));
  const face = el("figure");
  const big = file[i] ? el("img", {className: "big", src: link(of.folder, file[i]), alt: told(i)}) :
    el("div", {className: "big"});
  big.onerror = () => {  // the page was moved without the study
    const small = pic(i);
    small.classList.add("big");
    big.replaceWith(small);
  };
  const tables = el("div");
  const button = (text, label, press) =>
    el("button", {type: "button", title: label, "aria-label": label, onclick: press}, text);
  const step = by => () => move(by, 0) && show(lines[at.line].tiles[at.place]);
  const why = study.reasons[reason[i]];
  one.replaceChildren(el("div", {},
    el("div", {className: "bar-top"},
      el("h2", {id: "one-title"}, [name, ...of.paired ? [of.column, `${of.prompts} ${index[i]}`] : [of.label]].join(" · ")),
      button("←", "Image before", step(-1)), button("→", "Next image", step(1)),
      button("Close", "Close", () => one.close())),
    el("div", {}, big,
      el("p", {className: kept[i] ? "state" : "state out"}, kept[i] ? "Kept" : `Left out: ${why}`),
      el("p", {className: "asked"}, study.prompts[prompt[i]] || "")),
    el("div", {},
      ...(together.length ? [el("h3", {}, "Same prompt, same noise"),
        el("div", {className: "strip"}, ...together)] : []),
      el("h3", {}, `Beside whom, by ${study.judges.find(of => of.name === S.judge).label}`),
      el("div", {className: "strip"}, face, ...near),
      el("h3", {}, "Numbers, and where they come from"), numbersOf(i), tables)));
  if (!one.open) one.showModal();
  one.focus();
  one.scrollTop = 0;
  S.open = addressOf(i);
  writeAddress();
  one.dataset.i = i;
  rowsOf(i).then(rows => {
    if (Number(one.dataset.i) !== i) return;
    for (const [path, values] of Object.entries(rows)) {
      const lines = Object.entries(values).map(([key, value]) => el("tr", {}, el("th", {}, key),
        el("td", {}, el("code", {}, value === null ? "" : [value].flat().join(", ")))));
      tables.append(el("details", {open: path === Object.keys(rows)[0]},
        el("summary", {}, "Row in ", el("code", {}, path)), el("table", {}, ...lines)));
    }
    const aligned = Object.entries(rows).find(([path]) => path.startsWith("aligned/"));
    if (aligned?.[1].file) face.append(
      el("img", {src: link(of.faces, aligned[1].file), alt: "The face as recognisers see it"}),
      el("figcaption", {}, "Aligned face"));
  });
}

function numbersOf(i) {
  const of = study.sets[set[i]].name, own = study.people[identity[i]];
  const place = (extractor, source) =>
    study.features.replace("{source}", source).replace("{extractor}", extractor);
  const lines = [];
  const group = text => lines.push(el("tr", {}, el("th", {colSpan: 3, className: "group"}, text)));
  const add = (what, value, digits, extractor, how) => lines.push(el("tr", {},
    el("th", {}, what), el("td", {className: "number"}, value.toFixed(digits)),
    el("td", {}, el("code", {}, place(extractor, of)), el("br"), how)));
  for (const {name, label, guide} of study.judges) {
    const value = key => column[`${name}/${key}`]?.[i], person = study.people[value("other")];
    const against = place(name, "real");
    if (value("photo_similarity") == null) continue;
    group(`Similarity, by ${label}${guide ? ", which guided the training" : ""}`);
    if (value("own") != null) add(`to ${own}`, value("own"), 4, name,
      `features: mean cosine with the rows of ${own} in ${against}`);
    if (person) add(`to ${person}`, value("other_similarity"), 4, name,
      "features: the largest such mean of anybody else");
    add("to the nearest photograph", value("photo_similarity"), 4, name,
      `features: largest cosine with a row in ${against}`);
  }
  for (const [name, {task, label}] of Object.entries(study.extractors)) {
    const value = key => column[`${name}/${key}`]?.[i];
    const keys = task === "pose" ? ["pitch", "yaw", "roll"] : [task];
    if (value(keys[0]) == null) continue;
    group(task === "pose" ? `Pose in degrees, by ${label}` : `Quality of the face, by ${label}`);
    keys.forEach((key, k) =>
      add(key, value(key), task === "pose" ? 1 : 4, name, `features: column ${k}`));
  }
  return lines.length ? el("table", {}, ...lines) : el("p", {}, "No face, so nothing was measured.");
}

one.addEventListener("close", () => {
  S.open = "";
  writeAddress();
  mark(at.line, at.place);
});
document.addEventListener("click", event => {
  const pressed = event.target.closest(".tile[data-i]"), view = event.target.closest("[data-view]");
  if (view) change({view: view.dataset.view});
  if (event.target.closest("[data-reset]"))
    change({...FIRST, view: S.view, size: S.size, judge: S.judge});
  if (event.target === one) one.close();
  if (!pressed) return;
  const line = pressed.closest(".line");
  if (line) mark(Number(line.dataset.line), Number(pressed.dataset.column));
  show(Number(pressed.dataset.i));
});

// ---- Controls ---------------------------------------------------------------------------------------

function select(key, legend, options) {
  const made = el("select", {name: key, "aria-label": legend,
    onchange: () => change({[key]: made.value})},
    ...options.map(([value, text]) => el("option", {value}, text)));
  return el("fieldset", {}, el("label", {}, el("span", {className: "legend"}, legend), made));
}

function boxes(key, legend, names, colours, counts) {
  const rows = names.map((name, place) => {
    const box = el("input", {type: "checkbox", value: name, name: key});
    box.onchange = () => {
      const off = [...form.querySelectorAll(`[name=${key}]`)].filter(of => !of.checked);
      change({[key]: off.map(of => of.value).join("|")});
    };
    const dot = colours ? el("i", {className: "dot", style: `background:${colours[place]}`}) : null;
    return el("label", {className: "row"}, box, dot, name, el("span", {}, `${counts[place]}`));
  });
  return el("fieldset", {}, el("legend", {}, legend), ...rows);
}

const edges = {};
function range(key) {
  const values = measured(key);  // NaN where there is none, which is neither less nor more
  let low = Infinity, high = -Infinity;
  for (const value of values) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  if (low > high) return null;
  const step = high - low > 10 ? 1 : 0.01;
  low = Math.floor(low / step) * step;
  high = Math.max(Math.ceil(high / step) * step, low + step);
  edges[key] = [low, high, step];
  const counts = new Array(BINS).fill(0);
  for (const value of values)
    if (value >= low) counts[Math.min(BINS - 1, Math.floor((value - low) / (high - low) * BINS))]++;
  const most = Math.max(...counts), name = MEASURED[key][0];
  const bars = counts.map(count => el("i", {style: `height:${count && 4 + 96 * count / most}%`}));
  const thumbs = ["from", "to"].map((end, place) => el("input", {type: "range", min: low, max: high,
    step, "aria-label": `${name}, ${end}`}));
  const digits = step < 1 ? 2 : 0;
  thumbs.forEach(thumb => thumb.oninput = () => {
    const [a, b] = thumbs.map(of => Number(of.value));
    const [from, to] = [Math.min(a, b), Math.max(a, b)];
    const all = from <= low + step / 2 && to >= high - step / 2;
    change({[key]: all ? "" : `${from.toFixed(digits)}..${to.toFixed(digits)}`});
  });
  const made = el("fieldset", {className: "range"}, el("legend", {}, name, el("output")),
    el("div", {className: "hist"}, ...bars), el("div", {className: "two"}, ...thumbs));
  made.dataset.range = key;
  return made;
}

function build() {
  const tally = (length, of) => {
    const counts = new Array(length).fill(0);
    for (let i = 0; i < study.count; i++) counts[of[set[i]]]++;
    return counts;
  };
  const reasons = study.reasons.filter((text, r) => text && reason.includes(r));
  const flags = ["copy", "stranger"].filter(name => column[name]?.some(Boolean));
  const WORDS = {own: "the person", nobody: "nobody of the study", copy: "a copy of a photograph",
    stranger: "somebody in the wild", other: "another person", several: "several people"};
  const shows = [...study.shows, ...flags].map(word => [word, WORDS[word] ?? word]);
  form.replaceChildren(...[
    boxes("hide", "Sets", kinds, colourOf, tally(kinds.length, kindOf)),
    promptSets.length > 1 ? boxes("prompts", "Prompt sets", promptSets, null,
      tally(promptSets.length, promptSetOf)) : null,
    select("person", "Person", [["", "everybody"], ...study.people.map(name => [name, name])]),
    select("state", "Kept or left out", [["", "both"], ["kept", "kept"], ["out", "left out"],
      ...reasons.map(text => [`out:${text}`, `left out: ${text}`])]),
    shows.length ? select("shows", "Shows, by the audit", [["", "anybody"], ...shows]) : null,
    judges.length > 1 ? select("judge", "Similarity judged by", study.judges.map(of =>
      [of.name, of.label + (of.guide ? " (guided the training)" : "")])) : null,
    ...Object.keys(MEASURED).map(range),
    el("p", {}, el("button", {type: "button", className: "link", "data-reset": ""}, "Show all")),
  ].filter(Boolean));
  $("#sort").replaceChildren(...Object.entries(SORTS).filter(([key, [, of]]) =>
    key === "order" || of().some(value => value === value))
    .map(([value, [text]]) => el("option", {value}, text)));
  const words = new Set([...short.values()].join(", ").split(/[\s,]+/).filter(Boolean));
  $("#words").replaceChildren(...[...words, ...kinds].map(value => el("option", {value})));
}

function controls() {
  for (const button of document.querySelectorAll("[data-view]"))
    button.setAttribute("aria-pressed", button.dataset.view === S.view);
  for (const of of form.querySelectorAll("select")) of.value = S[of.name];
  for (const of of form.querySelectorAll("[type=checkbox]")) of.checked = !listed(of.name).has(of.value);
  for (const of of form.querySelectorAll("[data-range]")) {
    const [low, high, step] = edges[of.dataset.range], [from, to] = ends(of.dataset.range) ?? [low, high];
    const digits = step < 1 ? 2 : 0, thumbs = of.querySelectorAll("input");
    if (document.activeElement !== thumbs[0] && document.activeElement !== thumbs[1]) {
      thumbs[0].value = from;
      thumbs[1].value = to;
    }
    of.querySelector("output").textContent = `${from.toFixed(digits)}\u2009–\u2009${to.toFixed(digits)}`;
    of.querySelectorAll(".hist i").forEach((bar, place) => {
      const left = low + (high - low) * place / BINS, right = low + (high - low) * (place + 1) / BINS;
      bar.classList.toggle("in", right > from && left < to);
    });
  }
  if (document.activeElement !== $("#q")) $("#q").value = S.q;
  $("#sort").value = S.sort.replace("-", "");
  $("#turn").textContent = S.sort.startsWith("-") ? "↓" : "↑";
  $("#size").value = S.size;
}

$("#q").oninput = event => change({q: event.target.value});
$("#sort").onchange = event => change({sort: event.target.value === "spread" ? "-spread" : event.target.value});
$("#turn").onclick = () => change({sort: S.sort.startsWith("-") ? S.sort.slice(1) : `-${S.sort}`});
$("#size").oninput = event => change({size: event.target.value});
$("#keys").onclick = () => $("#help").showModal();
form.onsubmit = event => event.preventDefault();
let waiting = false;
main.addEventListener("scroll", () => {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => { waiting = false; draw(); });
}, {passive: true});
let breadth = main.clientWidth;
new ResizeObserver(() => {
  if (breadth === main.clientWidth) return draw();
  breadth = main.clientWidth;
  arrange();
  redraw();
}).observe(main);

function start() {
  readAddress();
  const open = S.open;
  apply();
  const i = open ? placeOf(open) : -1;
  if (i >= 0) {
    const line = Math.max(0, lines.findIndex(of => of.tiles.includes(i)));
    at = {line, place: Math.max(0, lines[line]?.tiles.indexOf(i) ?? 0)};
    show(i);
  } else if (one.open) one.close();
}
window.addEventListener("hashchange", () => { if (location.hash.slice(1) !== written) start(); });
start();
})();
