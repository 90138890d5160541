/* The list of classes that opens to give another label: type a part of a name, or a new one. */

const MOST = 60; // entries on the page at once

export class Chooser {
  /** `dialog` holds an input and a list; `chosen(label)` is called with what was chosen. */
  constructor(dialog, chosen) {
    this.dialog = dialog;
    this.input = dialog.querySelector("input");
    this.list = dialog.querySelector("[role=listbox]");
    this.chosen = chosen;
    this.input.addEventListener("input", () => this.draw());
    this.input.addEventListener("keydown", (event) => this.key(event));
    this.list.addEventListener("click", (event) => { const option = event.target.closest("[role=option]"); if (option) this.take(option.dataset.label); });
    dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  }

  open(labels) {
    this.labels = labels;
    this.input.value = "";
    this.draw();
    this.dialog.showModal();
  }

  draw() {
    const typed = this.input.value.trim();
    const low = typed.toLocaleLowerCase();
    const starts = this.labels.filter((label) => label.toLocaleLowerCase().startsWith(low));
    const holds = this.labels.filter((label) => !label.toLocaleLowerCase().startsWith(low) && label.toLocaleLowerCase().includes(low));
    const known = this.labels.some((label) => label.toLocaleLowerCase() === low);
    const found = [...starts.sort((a, b) => (b.toLocaleLowerCase() === low) - (a.toLocaleLowerCase() === low)), ...holds].slice(0, MOST);
    this.list.replaceChildren(...found.map((label) => this.option(label, label)));
    if (typed && !known) this.list.append(this.option(typed, `New class “${typed}”`));
    this.move(0);
  }

  option(label, text) {
    const option = document.createElement("li");
    option.setAttribute("role", "option");
    option.id = `class-${this.list.id}-${Math.random().toString(36).slice(2)}`;
    option.dataset.label = label;
    option.textContent = text;
    return option;
  }

  move(to) {
    const options = [...this.list.children];
    this.at = Math.max(0, Math.min(options.length - 1, to));
    options.forEach((option, i) => option.setAttribute("aria-selected", i === this.at));
    this.input.setAttribute("aria-activedescendant", options[this.at]?.id || "");
    options[this.at]?.scrollIntoView({ block: "nearest" });
  }

  key(event) {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step) { event.preventDefault(); this.move(this.at + step); }
    if (event.key === "Enter" && !event.isComposing) { event.preventDefault(); const here = this.list.children[this.at]; if (here) this.take(here.dataset.label); }
  }

  take(label) {
    this.dialog.close();
    this.chosen(label);
  }
}
