/* The review of a dataset: keys, selection, filters and what they do. Loaded by the page datasets/<name>/review alone. */

import { Chooser } from "./chooser.js";
import { Closer } from "./closer.js";
import { drawChoices, drawShot, element, fillShot, makeShot, notes, number, plural, title } from "./draw.js";
import { Grid } from "./grid.js";
import { Outbox } from "./outbox.js";
import { DROPPED, FIELDS, KEPT, RELABELLED, Rows } from "./rows.js";
import { Trail } from "./trail.js";
import { View } from "./view.js";

const $ = (id) => document.getElementById(id);
const root = $("review");
const page = root.dataset;
const DIGITS = 10;
const SOON = 400; // milliseconds without a decision, after which the counts of the filters follow

let rows; // what there is
let view; // what of it is shown
let trail; // what was decided
let wanted = {}; // the filter
let several = false; // a touch selects

// -- what is known ------------------------------------------------------------------------------------------------------

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
    const why = error instanceof TypeError ? "Darkroom does not answer." : error.message;
    $("loading").textContent = `The images cannot be shown: ${why} Load the page again.`;
    return;
  }
  view = new View(rows.count);
  trail = new Trail({ rows, outbox, address: page.edits, name: page.name, changed, refresh, wrong });
  $("digits").append(...rows.classes.slice(0, DIGITS).map(digitButton));
  $("loading").remove();
  await readAddress();
  $("grid").focus({ preventScroll: true });
}

function digitButton(label, i) {
  const button = element("button", { type: "button", title: `Label as ${label}` }, element("kbd", { textContent: (i + 1) % 10 }), element("span", { textContent: label }));
  button.dataset.label = label;
  return button;
}

/** Asks the server what is decided, unless more is on its way to it. */
async function refresh() {
  const told = await load(page.decisions).catch(() => null);
  if (!told || outbox.waiting.length) return;
  rows.decided(told);
  tellNewest(told.newest);
  changed();
}

function tellNewest(newest) {
  $("newer").hidden = newest <= Number(page.version);
  drawFreeze();
}

// -- the filter, and the address that says which ----------------------------------------------------------------------------

async function readAddress() {
  const said = new URLSearchParams(location.search);
  await choose(Object.fromEntries(FIELDS.filter((field) => said.get(field)).map((field) => [field, said.get(field)])));
  const at = said.get("image") ? view.place[rows.find(said.get("image"))] ?? -1 : -1;
  if (at >= 0) { go(at); look(false); } else if (closer.isOpen) hide();
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
      wrong(error instanceof TypeError ? "Darkroom does not answer, so the labels of the model are not known." : error.message);
      delete filter.model;
    }
  }
  if (!filter.model) { rows.forget(); if (filter.sort === "probability") delete filter.sort; }
  wanted = filter;
  const found = rows.filter(wanted);
  view.show(found.rows);
  $("nothing").hidden = view.length > 0;
  $("shown").textContent = view.length === rows.count ? plural(rows.count) : `${number(view.length)} of ${plural(rows.count)}`;
  grid.show(view.length);
  if (view.length && (view.cursor || scrollY)) grid.reveal(view.cursor);
  drawFilters(found.counts);
  drawDeck();
}

function drawFilters(counts) {
  drawChoices($("choices"), rows, wanted, counts);
  const any = FIELDS.some((field) => wanted[field] && field !== "sort");
  $("all").hidden = !any;
  $("open-picks").textContent = any ? "Filters (on)" : "Filters";
}

async function pick(change) {
  const filter = Object.fromEntries(Object.entries({ ...wanted, ...change }).filter(([, value]) => value));
  if ("model" in change) delete filter.sort;
  await choose(filter);
  history.pushState(null, "", address());
}

const everything = () => pick(Object.fromEntries(FIELDS.filter((field) => field !== "sort").map((field) => [field, ""])));

// -- what is on the page -----------------------------------------------------------------------------------------------------

const fill = (template, row) => template.replace("SHA256", rows.sha256(row)).replace("EXT", rows.ext(row));
const thumb = (row, side) => `${fill(page.thumb, row)}?side=${side}`;

function cell(at) {
  const row = view.rows[at];
  const shot = makeShot(row, wanted.model);
  draw(shot, row);
  return shot;
}

const rowOf = (shot) => Number(shot.id.slice(5));
const picture = (shot) => fillShot(shot, (side) => thumb(rowOf(shot), side), grid.square);

function draw(shot, row) {
  const at = view.place[row];
  const position = `${number(at + 1)} of ${number(view.length)}`;
  drawShot(shot, row, rows, { here: at === view.cursor, chosen: view.selected[row] === 1, alone: !view.many, position });
}

/** Draws the cells anew that are on the page, of some rows or of all. */
function redraw(some) {
  const few = some && some.length < rows.count / 20 ? some : null;
  for (const row of few ?? Array.from($("grid").querySelectorAll(".shot"), rowOf)) {
    const shot = $(`shot-${row}`);
    if (shot) draw(shot, row);
  }
}

function drawDeck() {
  const { row } = view;
  const some = row !== undefined;
  $("grid").setAttribute("aria-activedescendant", some && $(`shot-${row}`) ? `shot-${row}` : "");
  const place = `${number(view.cursor + 1)} of ${number(view.length)}`;
  $("here").replaceChildren(...(!some ? [] : view.many ? [element("strong", {}, `${number(view.many)} selected`)] : [element("strong", {}, rows.named(row)), ` ${place}`]));
  for (const button of $("deck").querySelectorAll("button")) button.disabled = !some && !["undo", "now"].includes(button.dataset.do);
  root.querySelector("[data-do=undo]").disabled = !trail.length;
  root.querySelector("[data-do=agree]").hidden = !wanted.model;
  if (!closer.isOpen || !some) return;
  closer.show(row, { title: title(row, rows), notes: notes(row, rows), place, next: view.rows[view.cursor + 1] });
  clearTimeout(drawDeck.noting); // browsers do not take a new address at any rate
  drawDeck.noting = setTimeout(() => { if (closer.isOpen) history.replaceState(history.state, "", address(view.row)); }, 200);
}

function drawFreeze() {
  let [relabelled, dropped] = [0, 0];
  for (const state of rows.state) { if (state === RELABELLED) relabelled += 1; else if (state === DROPPED) dropped += 1; }
  $("freeze").querySelector("[data-relabelled]").textContent = number(relabelled);
  $("freeze").querySelector("[data-dropped]").textContent = number(dropped);
  $("freeze").querySelector("button").disabled = !(relabelled + dropped);
}

/** What was decided about some rows, or any, is drawn at once; the counts follow when there is a moment for it. */
function changed(some) {
  settle();
  redraw(some);
  drawFreeze();
  drawDeck();
  clearTimeout(changed.counting);
  changed.counting = setTimeout(() => drawFilters(rows.filter(wanted).counts), SOON);
}

const say = (text) => { $("said").textContent = text; };

const outbox = new Outbox((state, sentence) => {
  if (state === "stuck") wrong(sentence, null, true);
  if (state === "saved" && $("stuck").dataset.again) $("stuck").hidden = true;
  if ($("stuck").hidden) tellSaved(state === "saved" ? "done" : "", state === "saved" ? "✓ saved" : "saving…");
});

/** Says what went wrong, and leads to the row; `again`: it is tried again until it works. What was refused is said until the next action. */
function wrong(sentence, row = null, again = false) {
  $("stuck").hidden = false;
  $("stuck").dataset.again = again ? "yes" : "";
  $("stuck").querySelector("span").textContent = sentence;
  $("stuck").querySelector("button").hidden = !again;
  tellSaved("failed", "✕ not saved");
  if (row !== null && view.place[row] >= 0) go(view.place[row]);
}

function settle() {
  if (!$("stuck").dataset.again) $("stuck").hidden = true;
}

function tellSaved(tone, text) {
  $("kept-state").className = `state ${tone}`;
  $("kept-state").textContent = text;
}

// -- moving, selecting, deciding --------------------------------------------------------------------------------------------

function go(to, extend = false) {
  if (!view.length) return;
  const before = view.many || extend ? undefined : [view.row];
  view.go(to, extend);
  grid.reveal(view.cursor);
  redraw(before && [...before, view.row]);
  drawDeck();
}

function toggle(at) {
  const before = view.row;
  const first = !view.many;
  view.toggle(at);
  redraw(first ? undefined : [before, view.row]);
  drawDeck();
}

function clear() {
  view.clear();
  redraw();
  drawDeck();
}

/** All that is shown and fits the filter now: of the undecided, not those that were decided since. */
function selectAll() {
  view.select(rows.fitting(wanted));
  redraw();
  drawDeck();
  say(`${plural(view.many)} selected`);
}

/** Decides about the selection, or about the image of the cursor and then goes on to the next. */
function decide(targets, after, what) {
  if (!view.length) return;
  const single = !view.many;
  trail.decide(targets, after);
  say(`${single ? rows.was(view.row) : plural(targets.length)} ${what}`);
  if (single) go(view.cursor + 1); else clear();
}

function keep() {
  const undecided = view.many ? view.targets.filter((row) => rows.state[row] < RELABELLED) : view.targets;
  const spared = view.targets.length - undecided.length;
  decide(undecided, () => ({ state: KEPT, given: 0 }), `kept${spared ? `; ${plural(spared)} decided before stay as they are` : ""}`);
}

const drop = () => decide(view.targets, () => ({ state: DROPPED, given: 0 }), "dropped");

function relabel(label) {
  const place = rows.place(label);
  decide(view.targets, (row) => trail.relabelled(row, place), `relabelled as ${label}`);
}

/** Gives the label that the model says, each image its own. */
function agree() {
  if (wanted.model) decide(view.targets.filter((row) => rows.said[row]), (row) => trail.relabelled(row, rows.said[row] - 1), "labelled as the model says");
}

function undo() {
  const undone = trail.undo();
  if (undone === null) { say("Nothing that was done here is left to undo."); return; }
  say(undone.length ? `Undone: ${plural(undone.length)}` : "Undone");
  if (undone.length && view.place[undone[0]] >= 0) go(view.place[undone[0]]);
}

// -- looking closer -----------------------------------------------------------------------------------------------------------

const closer = new Closer($("closer"), { address: thumb, facts: (row) => fill(page.facts, row), original: (row) => fill(page.original, row) });

function look(push = true) {
  if (!view.length) return;
  view.clear();
  closer.open();
  setInert(true);
  if (push) history.pushState({ looking: true }, "", address(view.row));
  drawDeck();
}

function close() {
  if (history.state?.looking) { history.back(); return; }
  history.replaceState(null, "", address());
  hide();
}

function hide() {
  closer.close();
  setInert(false);
  $("grid").focus({ preventScroll: true });
  if (view.length) grid.reveal(view.cursor);
  redraw();
  drawDeck();
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

// -- hands ----------------------------------------------------------------------------------------------------------------------

const inset = () => ({ top: $("picks").offsetHeight, bottom: $("deck").offsetHeight });
const grid = new Grid($("grid"), { cell, picture, inset, caption: () => (wanted.model ? 42 : 23) });
const chooser = new Chooser($("classes"), relabel);
new ResizeObserver(() => root.style.setProperty("--deck", `${$("deck").offsetHeight}px`)).observe($("deck"));

const DEEDS = {
  keep, drop, agree, undo, close, everything, all: selectAll, look: () => (closer.isOpen ? close() : look()), label: () => chooser.open(rows.labels),
  before: () => go(view.cursor - 1), after: () => go(view.cursor + 1), help: () => $("keys").showModal(), now: () => outbox.now(),
  several() {
    several = !several;
    root.querySelector("[data-do=several]").setAttribute("aria-pressed", several);
    if (!several) clear();
  },
};
const KEYS = { k: "keep", x: "drop", u: "undo", a: "all", m: "agree", l: "label", "/": "label", "?": "help", Enter: "look" };

document.addEventListener("keydown", (event) => {
  if (!view || event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  if (event.target.closest("input, select, textarea, dialog")) {
    if (event.key === "Escape" && event.target.closest("#picks, #freeze")) $("grid").focus();
    return;
  }
  if (["Enter", " "].includes(event.key) && event.target.closest("a, button, summary")) return; // it presses what has the focus
  if (arrow(event) || press(event)) event.preventDefault();
});

function arrow(event) {
  const { columns, page: lines } = grid;
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns, PageUp: -columns * lines, PageDown: columns * lines };
  const step = closer.isOpen ? { ...steps, ArrowUp: -1, ArrowDown: 1 }[event.key] : steps[event.key];
  const to = { Home: 0, End: view.length - 1 }[event.key] ?? (step && view.reach(step, columns));
  if (to === undefined) return false;
  go(to, event.shiftKey && !closer.isOpen);
  return true;
}

function press(event) {
  if (event.key === "Escape") { if (closer.isOpen) close(); else clear(); return true; }
  if (event.repeat) return true; // a key that something rests on decides once
  const deed = KEYS[event.key];
  if (deed) { if (!(closer.isOpen && deed === "all")) DEEDS[deed](); return true; }
  if (event.key === " ") { if (!closer.isOpen && view.length) toggle(view.cursor); return true; }
  const key = digit(event);
  if (key === null) return false;
  const label = rows.classes[(Number(key) + 9) % 10];
  if (label !== undefined) relabel(label);
  return true;
}

function digit(event) {
  if (/^\d$/.test(event.key)) return event.key;
  return event.shiftKey ? null : /^Digit(\d)$/.exec(event.code)?.[1] ?? null; // keyboards whose digits need Shift
}

root.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-do], #digits button");
  if (!button || !view) return;
  if (button.dataset.do) DEEDS[button.dataset.do](); else relabel(button.dataset.label);
  // a hand at the mouse goes on with keys
  if (event.detail && !closer.isOpen && !document.querySelector("dialog[open]")) $("grid").focus({ preventScroll: true });
});

$("grid").addEventListener("click", (event) => {
  const shot = event.target.closest(".shot");
  if (!shot) return;
  const at = view.place[rowOf(shot)];
  if (event.shiftKey) go(at, true);
  else if (event.ctrlKey || event.metaKey || several) toggle(at);
  else go(at);
  $("grid").focus({ preventScroll: true });
});
$("grid").addEventListener("dblclick", (event) => { if (event.target.closest(".shot") && !several) look(); });
$("grid").addEventListener("mousedown", (event) => { if (event.shiftKey) event.preventDefault(); }); // no text is selected

$("choices").addEventListener("change", (event) => pick({ [event.target.name]: event.target.value }));
$("choices").addEventListener("submit", (event) => event.preventDefault());
$("open-picks").addEventListener("click", () => $("open-picks").setAttribute("aria-expanded", $("picks").classList.toggle("open")));
document.addEventListener("input", (event) => { if (event.target.matches("[data-sizes] input") && view) { grid.layout(view.cursor); grid.reveal(view.cursor); } });
document.addEventListener("visibilitychange", () => { if (!document.hidden && view && !outbox.waiting.length) refresh(); });
addEventListener("pageshow", () => { if (view) { drawDeck(); drawFreeze(); } });
$("freeze").addEventListener("submit", async (event) => {
  if (!outbox.waiting.length) return;
  event.preventDefault(); // what is on its way belongs to the version
  await outbox.empty();
  $("freeze").submit();
});

begin();
