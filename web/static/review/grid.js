/* A contact sheet of any length: only the lines in view, and a few around them, are on the page. The document scrolls, not the sheet. */

const AROUND = 3; // lines above and below what is in view
const FAST = 4; // pixels a millisecond: pictures that pass faster are not asked for
const REST = 90; // milliseconds without scrolling, after which they are

export class Grid {
  /** `cell(position)` makes the element of an image, without its picture, which `picture(cell)` gives to it; `caption()` says how many pixels it has below its square. */
  constructor(root, { cell, picture, caption, inset }) {
    Object.assign(this, { root, cell, picture, caption, inset, total: 0, columns: 1, lines: new Map(), blank: new Set(), last: { top: 0, at: 0 } });
    addEventListener("scroll", () => this.later(), { passive: true });
    addEventListener("resize", () => this.layout());
    new ResizeObserver(() => { if (root.clientWidth !== this.width) this.layout(); }).observe(root);
  }

  /** Shows so many images. */
  show(total) {
    this.total = total;
    this.layout(null);
  }

  /** Draws everything anew; `keep`: the position that stays where it is on the screen. */
  layout(keep = this.middle()) {
    const before = keep === null ? null : this.offset(keep);
    const style = getComputedStyle(document.documentElement);
    const [size, gap] = ["--thumb", "--gap"].map((name) => parseFloat(style.getPropertyValue(name)));
    this.width = this.root.clientWidth;
    this.columns = Math.max(1, Math.floor((this.width + gap) / (size + gap)));
    this.square = (this.width - gap * (this.columns - 1)) / this.columns;
    this.pitch = Math.ceil(this.square + this.caption()) + Math.round(gap * 1.5);
    this.root.style.setProperty("--columns", this.columns);
    this.root.style.height = `${Math.ceil(this.total / this.columns) * this.pitch}px`;
    this.root.setAttribute("aria-rowcount", Math.ceil(this.total / this.columns));
    this.root.setAttribute("aria-colcount", this.columns);
    for (const line of this.lines.values()) this.drop(line);
    this.lines.clear();
    if (before !== null && this.total) scrollBy(0, this.offset(keep) - before);
    this.render();
  }

  /** Where the line of a position lies, in pixels below the top of the window. */
  offset(position) { return this.root.getBoundingClientRect().top + Math.floor(position / this.columns) * (this.pitch || 0); }

  /** A position in the middle of what is in view, null while that is the first screen. */
  middle() {
    const top = this.root.getBoundingClientRect().top;
    return this.pitch && top < 0 ? Math.min(this.total - 1, Math.floor((innerHeight / 2 - top) / this.pitch) * this.columns) : null;
  }

  /** Lines that fit between what covers the window at its top and its bottom. */
  get page() {
    const { top, bottom } = this.inset();
    return Math.max(1, Math.floor((innerHeight - top - bottom) / this.pitch));
  }

  /** Scrolls as little as brings a position into view. */
  reveal(position) {
    const { top, bottom } = this.inset();
    const at = this.offset(position);
    if (at < top) scrollBy(0, at - top - 8);
    else if (at + this.pitch > innerHeight - bottom) scrollBy(0, at + this.pitch - innerHeight + bottom);
    this.render();
  }

  later() {
    if (this.asked) return;
    this.asked = requestAnimationFrame(() => { this.asked = 0; this.render(); });
  }

  render() {
    if (!this.pitch) return;
    const top = -this.root.getBoundingClientRect().top;
    const count = Math.ceil(this.total / this.columns);
    const first = Math.max(0, Math.floor(top / this.pitch) - AROUND);
    const last = Math.min(count - 1, Math.floor((top + innerHeight) / this.pitch) + AROUND);
    for (const [number, line] of this.lines) if (number < first || number > last) { this.drop(line); this.lines.delete(number); }
    for (let number = first; number <= last; number += 1) if (!this.lines.has(number)) this.lines.set(number, this.make(number));
    this.load(top);
  }

  make(number) {
    const line = document.createElement("div");
    line.setAttribute("role", "row");
    line.setAttribute("aria-rowindex", number + 1);
    line.className = "line-of-shots";
    line.style.transform = `translateY(${number * this.pitch}px)`;
    for (let at = number * this.columns; at < Math.min(this.total, (number + 1) * this.columns); at += 1) {
      const cell = this.cell(at);
      cell.setAttribute("aria-colindex", at - number * this.columns + 1);
      line.append(cell);
      this.blank.add(cell);
    }
    this.root.append(line);
    return line;
  }

  /** Takes a line away, and what of it is still on its way. */
  drop(line) {
    for (const cell of line.children) this.blank.delete(cell);
    for (const image of line.querySelectorAll("img[src]")) if (!image.complete) { image.removeAttribute("srcset"); image.removeAttribute("src"); }
    line.remove();
  }

  load(top) {
    const now = performance.now();
    const speed = Math.abs(top - this.last.top) / Math.max(1, now - this.last.at);
    this.last = { top, at: now };
    clearTimeout(this.resting);
    if (speed > FAST) { this.resting = setTimeout(() => this.load(top), REST); return; }
    for (const cell of this.blank) this.picture(cell);
    this.blank.clear();
  }
}
