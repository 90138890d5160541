/* The review of a dataset: keys, selection, filters and what they do. Loaded by the page datasets/<name>/review alone. */

import { Chooser } from "./chooser.js";
import { Closer } from "./closer.js";
import { Grid } from "./grid.js";
import { Outbox } from "./outbox.js";
import { ACTIONS, CHOICES, DROPPED, FIELDS, KEPT, RELABELLED, Rows, STATES } from "./rows.js";

const $ = (id) => document.getElementById(id);
const root = $("review");
const page = root.dataset;
const number = (n) => n.toLocaleString("en-US");
const plural = (n) => `${number(n)} ${n === 1 ? "image" : "images"}`;
const VERBS = { keep: "kept", relabel: "relabelled", remove: "dropped" };
const WORDS = { [KEPT]: "kept", [RELABELLED]: "relabelled", [DROPPED]: "dropped" };
const DIGITS = 10;
const REMEMBERED = 500; // actions that can be undone after the page was loaded again

let rows; // what there is
let view = []; // the rows that are shown, in order
let place; // and where each of them is shown
let cursor = 0; // a position in the view
let anchor = 0; // where a range begins
let selected; // by row
let many = 0; // how many are selected
let several = false; // a touch selects
let wanted = {}; // the filter
let stands = 0; // how many decisions were made here; counts that are older are out of date
let noting; // the address of what is looked at closely, which browsers do not take at any rate
const trail = recalled(); // the actions that can be undone, the last at the end

// -- what is known, and the filter -----------------------------------------------------------------------------------

async function load(address) {
  const answer = await fetch(address);
  if (!answer.ok) throw new Error((await answer.json().catch(() => ({}))).detail || `Darkroom answers ${answer.status}.`);
  return answer.json();
}

async function begin() {
  root.hidden = false;
  try {
    const [index, decisions, findings] = await Promise.all([load(page.sheet), load(page.decisions), load(page.findings)]);
    rows = new Rows(index);
    rows.found(findings);
    rows.decided(decisions);
    tellNewest(decisions.newest);
  } catch (error) {
    $("loading").textContent = `The images cannot be shown: ${error instanceof TypeError ? "Darkroom does not answer" : error.message} Load the page again.`;
    return;
  }
  selected = new Uint8Array(rows.count);
  drawDigits();
  $("loading").remove();
  await readAddress();
  $("grid").focus({ preventScroll: true });
}

/** The address says which filter is chosen, and which image is looked at closely. */
async function readAddress() {
  const said = new URLSearchParams(location.search);
  await choose(Object.fromEntries(FIELDS.filter((field) => said.get(field)).map((field) => [field, said.get(field)])));
  const row = said.get("image") ? rows.find(said.get("image")) : -1;
  if (row >= 0 && place[row] >= 0) { go(place[row]); look(false); } else closer.hide();
}

function address(image) {
  const said = new URLSearchParams(Object.entries(wanted));
  if (image !== undefined) said.set("image", rows.sha256(image).slice(0, 16));
  return `${location.pathname}${said.size ? `?${said}` : ""}`;
}

/** Shows what fits a filter now; decisions that come later do not hide what is shown. */
async function choose(filter) {
  if (filter.model && filter.model !== wanted.model) {
    try { rows.judged(await load(`${page.verdicts}?by=${encodeURIComponent(filter.model)}`)); } catch (error) {
      say(error.message || "The labels of the model cannot be had now.");
      delete filter.model;
    }
  }
  if (!filter.model) { rows.forget(); if (filter.sort === "probability") delete filter.sort; }
  const here = view[cursor];
  wanted = filter;
  const found = rows.filter(wanted);
  view = found.rows;
  place = new Int32Array(rows.count).fill(-1);
  view.forEach((row, at) => { place[row] = at; });
  selected.fill(0);
  many = 0;
  cursor = anchor = here !== undefined && place[here] >= 0 ? place[here] : 0;
  $("nothing").hidden = view.length > 0;
  $("shown").textContent = view.length === rows.count ? plural(rows.count) : `${number(view.length)} of ${plural(rows.count)}`;
  grid.show(view.length);
  if (view.length && (cursor || scrollY)) grid.reveal(cursor);
  drawChoices(found.counts);
  drawDeck();
}

function drawChoices(counts) {
  const values = { label: rows.labels, state: CHOICES, source: rows.columns.source.values, licence: rows.columns.licence.values, split: rows.columns.split.values, finding: rows.findings.values };
  for (const select of $("choices").querySelectorAll("select")) {
    const { name } = select;
    if (name === "sort") { select.value = wanted.sort || (wanted.model ? "probability" : ""); select.querySelector("[data-judged]").hidden = !wanted.model; continue; }
    if (name === "model") {
      for (const option of select.options) option.textContent = option.textContent.replace(/ \([\d,]+\)$/, "");
      const chosen = [...select.options].find((option) => option.value === wanted.model);
      if (wanted.model && chosen) chosen.textContent += ` (${number(counts.model.get("otherwise") || 0)})`;
      select.value = wanted.model || "";
      continue;
    }
    const count = (value) => counts[name].get(value) || 0;
    const shown = values[name].filter((value) => count(value) || value === wanted[name]);
    const options = [["", `${select.dataset.all} (${number(count(""))})`], ...shown.map((value) => [value, `${name === "finding" ? value.replaceAll("_", " ") : value} (${number(count(value))})`])];
    select.replaceChildren(...options.map(([value, text]) => new Option(text, value)));
    select.value = wanted[name] || "";
    select.parentElement.hidden = !wanted[name] && values[name].length < (name === "finding" ? 1 : 2); // nothing to choose
  }
  $("all").hidden = !FIELDS.some((field) => wanted[field] && field !== "sort");
  $("open-picks").textContent = $("all").hidden ? "Filters" : "Filters (on)";
}

/** Counts follow what is decided, once there is a moment for it. */
function recount() {
  stands += 1;
  const now = stands;
  setTimeout(() => { if (now === stands) drawChoices(rows.filter(wanted).counts); }, 400);
  drawFreeze();
}

function pick(change) {
  const filter = { ...wanted, ...change };
  for (const field of Object.keys(filter)) if (!filter[field]) delete filter[field];
  if (!filter.model && filter.sort === "probability") delete filter.sort;
  choose(filter).then(() => history.pushState(null, "", address()));
}

// -- the sheet ------------------------------------------------------------------------------------------------------

function thumb(row, side) { return page.thumb.replace("SHA256", rows.sha256(row)).replace("EXT", rows.ext(row)) + `?side=${side}`; }

function cell(at) {
  const row = view[at];
  const shot = document.createElement("div");
  shot.className = "shot";
  shot.id = `shot-${row}`;
  shot.setAttribute("role", "gridcell");
  const frame = document.createElement("div");
  frame.className = "frame";
  const image = document.createElement("img");
  image.alt = "";
  image.decoding = "async";
  image.draggable = false;
  const [near, far] = grid.square < 120 ? [144, 224] : grid.square < 190 ? [224, 448] : [448, 448];
  image.dataset.src = thumb(row, near);
  if (far !== near) image.dataset.srcset = `${thumb(row, near)} 1x, ${thumb(row, far)} 2x`;
  frame.append(image);
  const caption = document.createElement("div");
  caption.className = "cap";
  shot.append(frame, caption);
  if (wanted.model) { const says = document.createElement("div"); says.className = "sub"; shot.append(says); }
  draw(shot, at);
  return shot;
}

/** Brings a cell up to what is known of its image. */
function draw(shot, at) {
  const row = view[at];
  const state = rows.state[row];
  const label = rows.named(row);
  const chosen = selected[row] === 1;
  shot.dataset.state = STATES[state];
  shot.classList.toggle("here", at === cursor);
  shot.setAttribute("aria-selected", chosen || (!many && at === cursor));
  shot.classList.toggle("chosen", chosen);
  const codes = rows.codes(row).map((code) => code.replaceAll("_", " "));
  const caption = { [RELABELLED]: `→ ${label}`, [DROPPED]: "✕ dropped", [KEPT]: `✓ ${label}` }[state] || label;
  shot.children[1].textContent = caption;
  shot.title = [state === RELABELLED ? `${rows.was(row)} becomes ${label}` : rows.was(row), ...codes].join(", ");
  const said = wanted.model && rows.said[row] ? `${rows.labels[rows.said[row] - 1]} ${(rows.probability[row] * 100).toFixed(0)} %` : "";
  if (shot.children[2]) shot.children[2].textContent = said ? `says ${said}` : "";
  const words = [rows.was(row), state === RELABELLED ? `relabelled as ${label}` : WORDS[state], said && `the model says ${said}`, ...codes, `${number(at + 1)} of ${number(view.length)}`];
  shot.setAttribute("aria-label", words.filter(Boolean).join(", "));
}

function redraw(changed) {
  for (const row of changed ?? [...$("grid").querySelectorAll(".shot")].map((shot) => Number(shot.id.slice(5)))) {
    const shot = $(`shot-${row}`);
    if (shot) draw(shot, place[row]);
  }
}

function drawDeck() {
  const row = view[cursor];
  const has = row !== undefined;
  $("grid").setAttribute("aria-activedescendant", has && $(`shot-${row}`) ? `shot-${row}` : "");
  $("here").replaceChildren();
  if (has) $("here").append(...(many ? [strong(`${number(many)} selected`)] : [strong(rows.named(row)), ` ${number(cursor + 1)} of ${number(view.length)}`]));
  for (const button of $("deck").querySelectorAll("button")) button.disabled = !has && !["undo", "now"].includes(button.dataset.do);
  root.querySelector("[data-do=undo]").disabled = !trail.length;
  root.querySelector("[data-do=agree]").hidden = !wanted.model;
  if (!closer.isOpen || !has) return;
  closer.show(row, seen());
  clearTimeout(noting);
  noting = setTimeout(() => { if (closer.isOpen) history.replaceState(history.state, "", address(view[cursor])); }, 200);
}

function strong(text) { return Object.assign(document.createElement("strong"), { textContent: text }); }

function drawDigits() {
  $("digits").replaceChildren(...rows.classes.slice(0, DIGITS).map((label, i) => {
    const button = Object.assign(document.createElement("button"), { type: "button", title: `Label as ${label}` });
    button.dataset.label = label;
    const key = Object.assign(document.createElement("kbd"), { textContent: String((i + 1) % 10) });
    button.append(key, Object.assign(document.createElement("span"), { textContent: label }));
    return button;
  }));
}

function drawFreeze() {
  let [relabelled, dropped] = [0, 0];
  for (const state of rows.state) { if (state === RELABELLED) relabelled += 1; else if (state === DROPPED) dropped += 1; }
  $("freeze").hidden = !(relabelled + dropped);
  $("freeze").querySelector("[data-relabelled]").textContent = number(relabelled);
  $("freeze").querySelector("[data-dropped]").textContent = number(dropped);
}

function tellNewest(newest) {
  $("newer").hidden = newest <= Number(page.version);
  drawFreeze();
}

function say(text) { $("said").textContent = text; }

// -- the cursor and the selection --------------------------------------------------------------------------------------

/** Moves to a position; `extend`: the range from where it began is selected. */
function go(to, extend = false) {
  if (!view.length) return;
  const from = cursor;
  cursor = Math.max(0, Math.min(view.length - 1, to));
  if (extend) range(anchor, cursor); else { anchor = cursor; if (many) clear(); }
  grid.reveal(cursor);
  redraw(extend ? undefined : [view[from], view[cursor]]);
  drawDeck();
}

function range(from, to) {
  selected.fill(0);
  const [first, last] = [Math.min(from, to), Math.max(from, to)];
  for (let at = first; at <= last; at += 1) selected[view[at]] = 1;
  many = last - first + 1;
}

function toggle(at) {
  const row = view[at];
  selected[row] = 1 - selected[row];
  many += selected[row] ? 1 : -1;
  const from = cursor;
  cursor = anchor = at;
  redraw([view[from], row]);
  drawDeck();
}

function clear() {
  selected.fill(0);
  many = 0;
  redraw();
  drawDeck();
}

/** Selects what is shown and fits the filter now: of the undecided, not those that were decided since. */
function selectAll() {
  const fits = rows.fitting(wanted);
  selected.fill(0);
  many = 0;
  for (const row of view) if (fits(row)) { selected[row] = 1; many += 1; }
  redraw();
  drawDeck();
  say(`${plural(many)} selected`);
}

// -- decisions ---------------------------------------------------------------------------------------------------------

/** Decides about the selection, or about the image of the cursor and then goes on to the next. */
function decide(action, label) {
  if (!view.length) return;
  const single = !many;
  let rowsOf = single ? [view[cursor]] : view.filter((row) => selected[row]);
  const left = rowsOf.length;
  if (action === "keep" && !single) rowsOf = rowsOf.filter((row) => rows.state[row] < RELABELLED);
  const at = label === undefined ? -1 : rows.place(label);
  const told = rowsOf.map((row) => ({ row, ...settled(row, action, at) })).filter(({ row, state, given }) => state !== rows.state[row] || given !== rows.given[row]);
  if (told.length) commit(told, single ? cursor : null);
  const what = action === "relabel" ? `relabelled as ${label}` : VERBS[action];
  const spared = left - rowsOf.length;
  say(`${single ? rows.was(view[cursor]) : plural(rowsOf.length)} ${what}${spared ? `; ${plural(spared)} decided before stay as they are` : ""}`);
  if (single) go(cursor + 1); else clear();
}

/** What an image is after an action: a relabel to the label it has is a keep. */
function settled(row, action, at) {
  if (action === "relabel" && at === rows.columns.label.rows[row]) return { state: KEPT, given: rows.given[row] };
  return { state: ACTIONS[action], given: action === "relabel" ? at : rows.given[row] };
}

function commit(told, from) {
  const entry = { id: newId(), from, before: told.map(({ row }) => [row, rows.state[row], rows.given[row]]) };
  for (const { row, state, given } of told) { rows.state[row] = state; rows.given[row] = given; }
  const edits = told.map(({ row, state, given }) => {
    const action = Object.keys(ACTIONS).find((name) => ACTIONS[name] === state);
    return { sha256: rows.sha256(row), action, ...(state === RELABELLED ? { label: rows.labels[given] } : {}), why: "review" };
  });
  trail.push(entry);
  remember();
  settle();
  outbox.add("POST", page.edits, { id: entry.id, edits }, { refused: (why) => refused(entry, why) });
  redraw(told.map(({ row }) => row));
  recount();
}

/** An action that the server does not take is taken back; what is true is asked of it again, in case more was built on that. */
async function refused(entry, why) {
  if (trail.includes(entry)) trail.splice(trail.indexOf(entry), 1);
  remember();
  await refresh();
  if (entry.before) go(place[entry.before[0][0]]);
  stuck(`Not saved: ${why}`, false);
}

function undo() {
  const entry = trail.pop();
  if (!entry) { say("Nothing that was done here is left to undo."); return; }
  remember();
  settle();
  outbox.add("DELETE", `${page.edits}/${entry.id}`, undefined, {
    done: entry.before ? undefined : refresh,
    refused: async (why) => { await refresh(); stuck(`Not undone: ${why}`, false); },
  });
  if (!entry.before) { say("Undone"); drawDeck(); return; } // it was done before the page was loaded: the server says how things were
  for (const [row, state, given] of entry.before) { rows.state[row] = state; rows.given[row] = given; }
  say(`Undone: ${plural(entry.before.length)}`);
  redraw(entry.before.map(([row]) => row));
  recount();
  const first = place[entry.before[0][0]];
  if (first >= 0) go(first); else drawDeck();
}

/** Asks the server what is decided. */
async function refresh() {
  const told = await load(page.decisions).catch(() => null);
  if (!told || outbox.waiting.length) return;
  rows.decided(told);
  tellNewest(told.newest);
  redraw();
  recount();
  drawDeck();
}

function newId() { return [...crypto.getRandomValues(new Uint8Array(20))].map((byte) => "0123456789abcdefghijklmnopqrstuv"[byte & 31]).join(""); }

function remember() {
  try { sessionStorage.setItem(`review ${page.name}`, JSON.stringify(trail.slice(-REMEMBERED).map(({ id }) => id))); } catch { /* private window */ }
}

function recalled() {
  try { return JSON.parse(sessionStorage.getItem(`review ${page.name}`) || "[]").map((id) => ({ id })); } catch { return []; }
}

const outbox = new Outbox((state, sentence) => {
  const banner = $("stuck");
  if (state === "stuck") stuck(sentence, true);
  if (state === "saved" && banner.dataset.again) banner.hidden = true;
  if (!banner.hidden) return;
  $("kept-state").className = `state ${state === "saved" ? "done" : ""}`;
  $("kept-state").textContent = state === "saved" ? "✓ saved" : "saving…";
});

/** Says what went wrong; `again`: it is tried again until it works. What was refused is said until the next action. */
function stuck(sentence, again) {
  const banner = $("stuck");
  banner.hidden = false;
  banner.dataset.again = again ? "yes" : "";
  banner.querySelector("span").textContent = sentence;
  banner.querySelector("button").hidden = !again;
  $("kept-state").className = "state failed";
  $("kept-state").textContent = "✕ not saved";
}

function settle() {
  if (!$("stuck").dataset.again) $("stuck").hidden = true;
}

// -- looking closer ------------------------------------------------------------------------------------------------------

const closer = new Closer($("closer"), {
  address: thumb,
  facts: (row) => page.facts.replace("SHA256", rows.sha256(row)),
  original: (row) => page.original.replace("SHA256", rows.sha256(row)).replace("EXT", rows.ext(row)),
});

function seen() {
  const row = view[cursor];
  const state = rows.state[row];
  const title = state === RELABELLED ? `${rows.was(row)} → ${rows.named(row)}` : `${rows.was(row)}${state ? `, ${WORDS[state]}` : ""}`;
  return { title, place: `${number(cursor + 1)} of ${number(view.length)}`, next: view[cursor + 1] };
}

function look(push = true) {
  if (!view.length) return;
  clear();
  closer.show(view[cursor], seen());
  setInert(true);
  if (push) history.pushState({ looking: true }, "", address(view[cursor]));
}

function close() {
  if (history.state?.looking) { history.back(); return; }
  history.replaceState(null, "", address());
  hide();
}

function hide() {
  closer.hide();
  setInert(false);
  $("grid").focus({ preventScroll: true });
  if (view.length) { grid.reveal(cursor); redraw(); drawDeck(); }
}

/** What lies under the closer look is out of reach while it is open. */
function setInert(inert) {
  for (const part of [document.querySelector(".rail"), document.querySelector(".head"), $("freeze"), $("picks"), $("grid")]) part.inert = inert;
}

addEventListener("popstate", () => {
  const said = new URLSearchParams(location.search);
  const same = FIELDS.every((field) => (said.get(field) || "") === (wanted[field] || ""));
  if (same && !said.get("image")) hide(); else readAddress();
});

// -- hands --------------------------------------------------------------------------------------------------------------

const inset = () => ({ top: $("picks").getBoundingClientRect().height, bottom: $("deck").getBoundingClientRect().height });
const grid = new Grid($("grid"), { cell, inset, caption: () => (wanted.model ? 42 : 23) });
new ResizeObserver(() => root.style.setProperty("--deck", `${$("deck").offsetHeight}px`)).observe($("deck"));
const chooser = new Chooser($("classes"), (label) => decide("relabel", label));

const DEEDS = {
  keep: () => decide("keep"), drop: () => decide("remove"), undo, all: selectAll,
  agree: agree, label: () => chooser.open(byUse()), look: () => (closer.isOpen ? close() : look()), close,
  before: () => go(cursor - 1), after: () => go(cursor + 1), help: () => $("keys").showModal(), now: () => outbox.now(), everything: () => pick(nothingPicked()),
  several: () => { several = !several; root.querySelector("[data-do=several]").setAttribute("aria-pressed", several); if (!several) clear(); },
};
const KEYS = { k: "keep", x: "drop", u: "undo", a: "all", m: "agree", l: "label", "/": "label", "?": "help", Enter: "look" };

/** Gives the label that the model says; of a selection, to each image its own. */
function agree() {
  if (!wanted.model || !view.length) return;
  const single = !many;
  const told = (single ? [view[cursor]] : view.filter((row) => selected[row])).filter((row) => rows.said[row]);
  const changed = told.map((row) => ({ row, ...settled(row, "relabel", rows.said[row] - 1) })).filter(({ row, state, given }) => state !== rows.state[row] || given !== rows.given[row]);
  if (changed.length) commit(changed, single ? cursor : null);
  say(`${plural(changed.length)} labelled as the model says`);
  if (single) go(cursor + 1); else clear();
}

function byUse() { return [...rows.labels]; }
function nothingPicked() { return Object.fromEntries(FIELDS.filter((field) => field !== "sort").map((field) => [field, ""])); }

function arrow(event) {
  const lines = grid.columns;
  const step = closer.isOpen
    ? { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key]
    : { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -lines, ArrowDown: lines, PageUp: -lines * grid.page, PageDown: lines * grid.page }[event.key];
  const to = { Home: 0, End: view.length - 1 }[event.key] ?? (step === undefined ? undefined : reach(step));
  if (to === undefined) return false;
  go(to, event.shiftKey && !closer.isOpen);
  return true;
}

/** Where a step leads: up and down stay in their column while there is a line, and down from the last but one reaches the end. */
function reach(step) {
  const to = cursor + step;
  if (Math.abs(step) === 1) return to;
  if (to < 0) return Math.abs(step) > grid.columns ? cursor % grid.columns : cursor;
  if (to < view.length) return to;
  const lines = (at) => Math.floor(at / grid.columns);
  return lines(cursor) === lines(view.length - 1) ? cursor : view.length - 1;
}

function digit(event) {
  if (/^\d$/.test(event.key)) return event.key;
  return event.shiftKey ? null : /^(?:Digit|Numpad)(\d)$/.exec(event.code)?.[1] ?? null; // keyboards whose digits need Shift
}

document.addEventListener("keydown", (event) => {
  if (!rows || event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  if (event.target.closest("input, select, textarea, dialog")) { if (event.key === "Escape" && event.target.closest("#picks, #freeze")) $("grid").focus(); return; }
  if (["Enter", " "].includes(event.key) && event.target.closest("a, button, summary")) return; // it presses what has the focus
  if (press(event)) event.preventDefault();
});

function press(event) {
  if (arrow(event)) return true;
  if (event.key === "Escape") { if (closer.isOpen) close(); else if (many) clear(); else return false; return true; }
  if (event.repeat) return true; // a key that rests on the table decides once
  const deed = KEYS[event.key];
  if (deed) { DEEDS[deed](); return true; }
  if (event.key === " " && !closer.isOpen) { toggle(cursor); return true; }
  const key = digit(event);
  if (key === null) return false;
  const label = rows.classes[(Number(key) + 9) % 10];
  if (label !== undefined) decide("relabel", label);
  return true;
}

root.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-do], #digits button");
  if (!button) return;
  if (button.dataset.do) DEEDS[button.dataset.do](); else decide("relabel", button.dataset.label);
  if (event.detail && !closer.isOpen && !document.querySelector("dialog[open]")) $("grid").focus({ preventScroll: true }); // a hand on the mouse goes on with keys
});

$("grid").addEventListener("click", (event) => {
  const shot = event.target.closest(".shot");
  if (!shot) return;
  const at = place[Number(shot.id.slice(5))];
  if (event.shiftKey) go(at, true);
  else if (event.ctrlKey || event.metaKey || several) toggle(at);
  else go(at);
  $("grid").focus({ preventScroll: true });
});
$("grid").addEventListener("dblclick", (event) => { if (event.target.closest(".shot") && !several) look(); });
$("grid").addEventListener("mousedown", (event) => { if (event.shiftKey) event.preventDefault(); }); // no text is selected

$("choices").addEventListener("change", (event) => pick({ [event.target.name]: event.target.value }));
$("choices").addEventListener("submit", (event) => event.preventDefault());
$("all").addEventListener("click", () => pick(nothingPicked()));
$("open-picks").addEventListener("click", () => {
  const open = $("picks").classList.toggle("open");
  $("open-picks").setAttribute("aria-expanded", open);
});
document.addEventListener("input", (event) => { if (event.target.matches("[data-sizes] input")) { grid.layout(cursor); grid.reveal(cursor); } });
document.addEventListener("visibilitychange", () => { if (!document.hidden && rows && !outbox.waiting.length) refresh(); });
$("freeze").addEventListener("submit", async (event) => {
  if (!outbox.waiting.length) return;
  event.preventDefault(); // what is on its way belongs to the version
  await outbox.empty();
  $("freeze").submit();
});

begin();
