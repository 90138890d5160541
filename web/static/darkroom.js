/* The little that pages need a script for; each works without it. Loaded before the page is drawn, so that sizes do not jump. */
"use strict";

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

/* A form is sent once. */
document.addEventListener("submit", (event) => {
  if (event.target.hasAttribute("hx-post")) return;
  const button = event.target.querySelector("button[type=submit]");
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
