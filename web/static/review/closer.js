/* A closer look at one image: large, with where it comes from. The sheet below stays where it is. */

const WAIT = 80; // milliseconds: facts of images that are passed faster are not asked for

export class Closer {
  /** `panel` is the element; `address(row, side)` of a picture, `facts(row)` of what is known, `original(row)` of the download. */
  constructor(panel, { address, facts, original }) {
    Object.assign(this, { panel, address, facts, original });
    this.image = panel.querySelector("img");
    this.list = panel.querySelector("dl");
    this.heading = panel.querySelector("h2");
    this.place = panel.querySelector("[data-place]");
    this.notes = panel.querySelector("[data-notes]");
    this.download = panel.querySelector("[data-original]");
    this.ahead = new Image();
  }

  get isOpen() { return !this.panel.hidden; }

  open() {
    this.panel.hidden = false;
    this.row = undefined;
    document.documentElement.classList.add("looking");
    this.panel.focus({ preventScroll: true });
  }

  /** Shows a row; `title`, `place` and `notes` are said beside it, and the picture of `next` is loaded meanwhile. */
  show(row, { title, place, notes, next }) {
    this.heading.textContent = title;
    this.notes.textContent = notes;
    this.image.alt = title;
    this.place.textContent = place;
    if (row === this.row) return;
    const opened = this.row === undefined;
    this.row = row;
    this.image.src = this.address(row, 896);
    this.image.srcset = `${this.address(row, 896)} 1x, ${this.address(row, 1792)} 2x`;
    this.download.href = this.original(row);
    this.list.replaceChildren();
    clearTimeout(this.asking);
    this.asking = setTimeout(() => this.ask(row), opened ? 0 : WAIT);
    if (next !== undefined) this.ahead.src = this.address(next, 896);
  }

  close() {
    this.panel.hidden = true;
    document.documentElement.classList.remove("looking");
    clearTimeout(this.asking);
  }

  async ask(row) {
    const answer = await fetch(this.facts(row)).catch(() => null);
    if (row !== this.row) return;
    if (!answer?.ok) { this.list.replaceChildren(...pair("Details", "cannot be had now")); return; }
    const known = await answer.json();
    if (row !== this.row) return;
    this.list.replaceChildren(
      ...pair("Name", known.name || "–"),
      ...pair("Size", `${known.width.toLocaleString("en-US")} × ${known.height.toLocaleString("en-US")} px, ${known.format}, ${weight(known.bytes)}`),
      ...pair("Source", known.query ? `${known.source}: ${known.query}` : known.source || "–"),
      ...pair("Licence", link(known.licence_url, known.licence || known.licence_url || "unknown")),
      ...pair("Creator", link(known.creator_url, known.creator || known.creator_url || "–")),
      ...(known.attribution ? pair("Attribution", known.attribution) : []),
      ...(known.page_url ? pair("Page", link(known.page_url, known.page_url)) : []),
      ...pair("SHA-256", known.sha256, "mono"),
    );
  }
}

function pair(term, value, className = "") {
  const [dt, dd] = ["dt", "dd"].map((name) => document.createElement(name));
  dt.textContent = term;
  dd.append(value);
  dd.className = className;
  return [dt, dd];
}

/* Addresses come from strangers: only those of the web become links. */
function link(address, text) {
  if (!/^https?:\/\//i.test(address)) return text;
  const a = document.createElement("a");
  Object.assign(a, { href: address, textContent: text, rel: "noopener noreferrer", target: "_blank" });
  return a;
}

function weight(bytes) {
  return bytes < 1000 ? `${bytes} bytes` : bytes < 1e6 ? `${(bytes / 1000).toFixed(1)} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
}
