/* The little that pages need a script for; each works without it. Loaded before the page is drawn, so that sizes do not jump. */
"use strict";

document.documentElement.classList.add("scripted");
const SIZES = ["96", "144", "224"];
const kept = (() => { try { return localStorage.getItem("thumb"); } catch { return null; } })();
if (SIZES.includes(kept)) document.documentElement.dataset.thumb = kept;

/* Size of thumbnails: a slider where there is a contact sheet, remembered for all of them. */
function prepareSliders() {
  for (const label of document.querySelectorAll("[data-sizes]")) {
    label.hidden = false;
    const slider = label.querySelector("input");
    slider.value = SIZES.indexOf(document.documentElement.dataset.thumb || "144");
    slider.setAttribute("aria-valuetext", `${SIZES[slider.value]} pixels`);
  }
}
document.addEventListener("input", (event) => {
  if (!event.target.matches("[data-sizes] input")) return;
  const size = SIZES[event.target.value];
  document.documentElement.dataset.thumb = size;
  event.target.setAttribute("aria-valuetext", `${size} pixels`);
  try { localStorage.setItem("thumb", size); } catch { /* private window: not remembered */ }
});

/* Arrow keys walk over a contact sheet. */
document.addEventListener("keydown", (event) => {
  const here = event.target.closest && event.target.closest(".sheet a");
  if (!here || event.ctrlKey || event.metaKey || event.altKey) return;
  const all = [...here.closest(".sheet").querySelectorAll(".cell a")];
  const top = all[0].getBoundingClientRect().top;
  const columns = Math.max(1, all.findIndex((a) => a.getBoundingClientRect().top > top + 4)) || all.length;
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key];
  const next = step && all[all.indexOf(here) + step];
  if (next) { event.preventDefault(); next.focus(); }
});

/* On the page of one picture, the arrows go to its neighbours. */
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea, .sheet")) return;
  const link = { ArrowLeft: "prev", ArrowRight: "next" }[event.key];
  const neighbour = link && document.querySelector(`a[rel="${link}"][data-key]`);
  if (neighbour) neighbour.click();
});

/* Live parts: none is asked for while nobody looks; the end is announced in the title, the icon and aloud. */
document.addEventListener("htmx:beforeRequest", (event) => {
  if (document.hidden && event.target.matches("[data-live]")) event.preventDefault();
});
document.addEventListener("visibilitychange", () => {
  if (!document.hidden) for (const part of document.querySelectorAll("[data-live][hx-get]")) window.htmx?.trigger(part, "wake");
});
document.addEventListener("htmx:afterSwap", () => {
  const part = document.querySelector("[data-title]");
  if (!part) return;
  const said = document.getElementById("said");
  if (document.title !== part.dataset.title) document.title = part.dataset.title;
  if (part.dataset.state && part.dataset.state !== part.ownerDocument.body.dataset.state) {
    document.body.dataset.state = part.dataset.state;
    said.textContent = part.dataset.says || "";
    showIcon();
    if (["done", "failed", "cancelled"].includes(part.dataset.state)) document.dispatchEvent(new Event("ended"));
  }
});
/* What a reader has opened stays open when a live part is replaced. */
document.addEventListener("DOMContentLoaded", () => {
  if (window.Idiomorph) window.Idiomorph.defaults.callbacks.beforeAttributeUpdated = (name, node) => !(name === "open" && node.tagName === "DETAILS");
});
function showIcon() {
  const icon = document.getElementById("icon");
  const state = document.querySelector("[data-state][data-title]")?.dataset.state;
  if (icon && state) icon.href = icon.dataset[state] || icon.dataset.idle;
}
for (const [name, lost] of [["htmx:sendError", true], ["htmx:responseError", true], ["htmx:afterOnLoad", false]]) {
  document.addEventListener(name, (event) => {
    if (event.target.matches?.("[data-live]")) document.getElementById("lost").hidden = !lost;
  });
}

/* Commands can be copied. */
document.addEventListener("click", async (event) => {
  if (!event.target.matches(".copy")) return;
  await navigator.clipboard.writeText(event.target.parentElement.querySelector("code").textContent);
  event.target.textContent = "copied";
  setTimeout(() => { event.target.textContent = "copy"; }, 1500);
});

/* Reviewing, a key a picture: the next pictures are on the page already, hidden; a decision travels while the next one is shown. */
const review = {
  trail: [], // items decided here, the last at the end
  sent: Promise.resolve(), // decisions go one after the other, so that an undo never overtakes what it undoes
  desk: () => document.querySelector("[data-review]"),
  view: (item) => document.getElementById(`view-${item}`),
  here: () => document.querySelector(".view:not([hidden])"),

  turn(view) {
    const here = review.here();
    if (!view || view === here) return;
    const focused = here.contains(document.activeElement);
    here.hidden = true;
    view.hidden = false;
    if (focused) view.querySelector("h2").focus({ preventScroll: true });
    let passed = true;
    for (const entry of document.getElementById("strip").children) {
      entry.hidden = passed;
      if (entry.dataset.item === view.dataset.item) { entry.hidden = true; passed = false; }
    }
    history.replaceState(null, "", view.dataset.here);
    review.fetchAhead(view);
  },

  async fetchAhead(view) {
    const last = view.parentElement.lastElementChild;
    let left = 0;
    for (let next = view.nextElementSibling; next; next = next.nextElementSibling) left += 1;
    if (left > 4 || last.dataset.asked) return;
    last.dataset.asked = "yes";
    const answer = await fetch(last.dataset.here);
    if (!answer.ok) return;
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    for (const more of page.querySelectorAll(".view")) if (!document.getElementById(more.id)) { more.hidden = true; last.parentElement.append(more); }
    const strip = document.getElementById("strip");
    for (const more of page.querySelectorAll("#strip li")) {
      if (![...strip.children].some((entry) => entry.dataset.item === more.dataset.item)) { more.hidden = false; strip.append(more); }
    }
  },

  forward() {
    const here = review.here();
    if (here.nextElementSibling) review.turn(here.nextElementSibling);
    else review.sent.then(() => { location.href = review.desk().dataset.end; });
  },

  back() {
    const here = review.here();
    if (here.previousElementSibling) review.turn(here.previousElementSibling);
    else here.querySelector("a[rel=prev]")?.click();
  },

  show(view, label) {
    const verdict = view.querySelector(".verdict");
    const was = !verdict.hidden;
    verdict.hidden = label === null;
    const right = label === view.querySelector("[data-model]")?.value;
    verdict.querySelector("span").textContent = right ? "accepted" : `relabelled as ${label}`;
    review.count((label !== null) - was);
    document.getElementById("undo-last").hidden = !review.trail.length;
  },

  count(more) {
    for (const number of document.querySelectorAll("[data-count]")) {
      number.dataset.count = Number(number.dataset.count) + more;
      number.textContent = Number(number.dataset.count).toLocaleString("en-US");
    }
    const done = Number(document.getElementById("reviewed").dataset.count);
    const bar = document.getElementById("review-bar");
    bar.setAttribute("aria-valuenow", done);
    bar.firstElementChild.setAttribute("width", `${(100 * done) / review.desk().dataset.total}%`);
    document.getElementById("outcome").hidden = !Number(document.querySelector(".decided").dataset.count);
  },

  tell(view, method, body, failed) {
    const wrong = document.getElementById("review-wrong");
    wrong.hidden = true;
    review.sent = review.sent.then(async () => {
      try {
        const answer = await fetch(view.dataset.api, { method, body, headers: { "Content-Type": "application/json" }, keepalive: true });
        if (!answer.ok) throw new Error((await answer.json()).detail);
      } catch (error) {
        failed();
        review.turn(view);
        wrong.textContent = `Not kept: ${error instanceof TypeError ? "Darkroom does not answer. Try again." : error.message}`;
        wrong.hidden = false;
      }
    });
  },

  decide(view, label) {
    review.trail.push(view.dataset.item);
    review.show(view, label);
    const model = view.querySelector("[data-model]")?.value;
    document.getElementById("said").textContent = `${view.querySelector("h2").textContent}: ${label}`;
    review.tell(view, "PUT", JSON.stringify(label === model ? { accept: true } : { label }), () => {
      review.trail = review.trail.filter((item) => item !== view.dataset.item);
      review.show(view, null);
    });
    review.forward();
  },

  undo() {
    const item = review.trail.pop();
    const view = item && review.view(item);
    if (!view) return false;
    const before = view.querySelector(".verdict span").textContent;
    review.show(view, null);
    review.turn(view);
    review.tell(view, "DELETE", undefined, () => {
      view.querySelector(".verdict").hidden = false;
      view.querySelector(".verdict span").textContent = before;
      review.count(1);
    });
    return true;
  },
};
document.addEventListener("submit", (event) => {
  if (event.target.closest("#undo-last")) { if (review.desk() && review.undo()) event.preventDefault(); return; }
  const view = event.target.closest(".view");
  if (!view) return;
  event.preventDefault();
  const field = event.target.querySelector("input[type=text]");
  const label = (field ? field.value : event.submitter.value).trim();
  review.decide(view, event.submitter?.name === "accept" ? view.querySelector("[data-model]").value : label);
  if (field) { field.value = ""; field.blur(); }
});
document.addEventListener("click", (event) => {
  const link = event.target.closest(".view a[rel], #strip a");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
  if (link.rel === "next") { event.preventDefault(); review.forward(); return; }
  const near = link.rel === "prev" ? review.here().previousElementSibling : review.view(link.closest("li").dataset.item);
  if (near) { event.preventDefault(); review.turn(near); }
});
document.addEventListener("keydown", (event) => {
  const view = review.desk() && review.here();
  if (!view || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  if (event.target.closest("input, select, textarea")) { if (event.key === "Escape") event.target.blur(); return; }
  if (event.key === "Enter" && event.target.closest("a, button, summary")) return; // it presses what has the focus
  const digit = /^[1-9]$/.test(event.key) && view.querySelectorAll("[name=label][type=submit]")[event.key - 1];
  const press = digit || { Enter: view.querySelector("[name=accept]"), a: view.querySelector("[name=accept]") }[event.key];
  const act = press ? () => press.click() : {
    l: () => view.querySelector("input[name=label]").focus(), s: review.forward, ArrowRight: review.forward, ArrowLeft: review.back,
    u: () => review.undo() || document.querySelector("#undo-last:not([hidden]) button")?.click(),
  }[event.key];
  if (act) { event.preventDefault(); act(); }
});

/* Sources of a scrape are asked in the order of their list. Without this script the server moves them. */
document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-order] button[name=up]");
  if (!button) return;
  event.preventDefault();
  const entry = button.closest("li");
  const before = entry.previousElementSibling;
  if (!before) return;
  before.before(entry);
  const place = [...entry.parentElement.children].indexOf(entry) + 1;
  document.getElementById("said").textContent = `${entry.querySelector("label").textContent.trim()} is number ${place}.`;
  (place > 1 ? button : entry.querySelector("input[type=checkbox]")).focus();
});

/* A form is sent once. */
document.addEventListener("submit", (event) => {
  if (event.defaultPrevented || event.target.hasAttribute("hx-post")) return;
  const button = event.target.querySelector("button.primary[type=submit]") || event.target.querySelector("button[type=submit]");
  if (button) setTimeout(() => { button.disabled = true; });
});
window.addEventListener("pageshow", () => {
  for (const button of document.querySelectorAll("button[disabled]")) button.disabled = false;
});

document.addEventListener("DOMContentLoaded", () => {
  prepareSliders();
  for (const select of document.querySelectorAll("[data-sends] select")) select.addEventListener("change", () => select.form.requestSubmit());
  const state = document.querySelector("[data-state][data-title]");
  if (state) document.body.dataset.state = state.dataset.state;
  if (navigator.clipboard) for (const button of document.querySelectorAll(".copy")) button.hidden = false;
  showIcon();
});
