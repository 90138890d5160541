/* How an image of the sheet, its place in the filters and its label in words look. */

import { CHOICES, DROPPED, FIELDS, KEPT, RELABELLED, STATES } from "./rows.js";

export const number = (n) => n.toLocaleString("en-US");
export const plural = (n) => `${number(n)} ${n === 1 ? "image" : "images"}`;
const spaced = (code) => code.replaceAll("_", " ");

export function element(tag, values = {}, ...children) {
  const made = Object.assign(document.createElement(tag), values);
  made.append(...children);
  return made;
}

const BLANK = element("div", { className: "shot" }, element("div", { className: "frame" }, element("img", { alt: "", decoding: "async", draggable: false })), element("div", { className: "cap" }));
BLANK.setAttribute("role", "gridcell");

/** The cell of an image, still without its picture; `judged`: with a line for what a model says. */
export function makeShot(row, judged) {
  const shot = BLANK.cloneNode(true);
  shot.id = `shot-${row}`;
  if (judged) shot.append(element("div", { className: "sub" }));
  return shot;
}

/** Gives a cell its picture; `thumb(side)` is the address of a thumbnail, `square` the side of the cell in pixels. */
export function fillShot(shot, thumb, square) {
  const [near, far] = square < 120 ? [144, 224] : square < 190 ? [224, 448] : [448, 448];
  const image = shot.firstChild.firstChild;
  if (far !== near) image.srcset = `${thumb(near)} 1x, ${thumb(far)} 2x`;
  image.src = thumb(near);
}

/** Brings a cell up to what is known of its image. */
export function drawShot(shot, row, rows, { here, chosen, alone, position }) {
  const [state, was, label] = [rows.state[row], rows.was(row), rows.named(row)];
  const codes = rows.codes(row).map(spaced);
  const said = saidOf(row, rows);
  shot.dataset.state = STATES[state];
  shot.classList.toggle("here", here);
  shot.classList.toggle("chosen", chosen);
  shot.setAttribute("aria-selected", chosen || (alone && here));
  shot.children[1].textContent = { [RELABELLED]: `→ ${label}`, [DROPPED]: "✕ dropped", [KEPT]: `✓ ${label}` }[state] || label;
  if (shot.children[2]) shot.children[2].textContent = said ? `says ${said}` : "";
  shot.title = [state === RELABELLED ? `${was} becomes ${label}` : was, ...codes].join(", ");
  shot.setAttribute("aria-label", [title(row, rows), said && `the model says ${said}`, ...codes, position].filter(Boolean).join(", "));
}

function saidOf(row, rows) {
  return rows.said[row] ? `${rows.labels[rows.said[row] - 1]} ${(rows.probability[row] * 100).toFixed(0)} %` : "";
}

/** What a model and a cleaning report say of an image. */
export function notes(row, rows) {
  const said = saidOf(row, rows);
  return [said && `The model says ${said}.`, rows.codes(row).length && `Found: ${rows.codes(row).map(spaced).join(", ")}.`].filter(Boolean).join(" ");
}

/** An image in words: what it is, and what was decided. */
export function title(row, rows) {
  const state = rows.state[row];
  return state === RELABELLED ? `${rows.was(row)} → ${rows.named(row)}` : `${rows.was(row)}${state ? `, ${STATES[state]}` : ""}`;
}

/** Fills the filters of `form` with what can be chosen, and how many images each choice would show. */
export function drawChoices(form, rows, wanted, counts) {
  const values = { label: rows.labels, state: CHOICES, finding: rows.findings.values };
  for (const field of FIELDS) {
    const select = form.elements[field];
    if (!select) continue;
    if (field === "sort") drawOrders(select, wanted);
    else if (field === "model") drawJudges(select, wanted, counts.model);
    else drawChoice(select, values[field] || rows.columns[field].values, wanted[field], counts[field]);
  }
}

function drawChoice(select, values, chosen, counts) {
  const option = (value, text) => new Option(`${text} (${number(counts.get(value) || 0)})`, value);
  const there = values.filter((value) => counts.get(value) || value === chosen);
  const lost = chosen !== undefined && !values.includes(chosen) ? [chosen] : []; // an address may name what is not there
  select.replaceChildren(option("", select.dataset.all), ...[...there, ...lost].map((value) => option(value, select.name === "finding" ? spaced(value) : value)));
  select.value = chosen || "";
  select.parentElement.hidden = !chosen && values.length < (select.name === "finding" ? 1 : 2); // nothing to choose
}

function drawJudges(select, wanted, counts) {
  for (const option of select.options) {
    option.dataset.name ??= option.textContent;
    option.textContent = option.value && option.value === wanted.model ? `${option.dataset.name} (${number(counts.get("otherwise") || 0)})` : option.dataset.name;
  }
  select.value = wanted.model || "";
}

function drawOrders(select, wanted) {
  select.querySelector("[data-judged]").hidden = !wanted.model;
  select.value = wanted.sort || (wanted.model ? "probability" : "");
}
