/* Which images are shown and in which order, where the cursor is, and what is selected. Knows nothing of the page. */

export class View {
  constructor(count) {
    this.rows = []; // in the order they are shown
    this.place = new Int32Array(count).fill(-1); // by row: its position, or -1
    this.selected = new Uint8Array(count); // by row
    this.many = 0; // how many are selected
    this.cursor = 0; // a position
    this.anchor = 0; // where a range begins
  }

  get row() { return this.rows[this.cursor]; }
  get length() { return this.rows.length; }
  /** What an action is about: the selection, or without one the image of the cursor. */
  get targets() { return this.many ? this.rows.filter((row) => this.selected[row]) : this.rows.slice(this.cursor, this.cursor + 1); }

  /** Shows other rows; the cursor stays at its image if that is among them. */
  show(rows) {
    const here = this.row;
    this.rows = rows;
    this.place.fill(-1);
    rows.forEach((row, at) => { this.place[row] = at; });
    this.clear();
    this.cursor = this.anchor = here === undefined ? 0 : Math.max(0, this.place[here]);
  }

  /** Moves to a position; `extend`: the range from where it began is selected, else nothing is. */
  go(to, extend = false) {
    this.cursor = Math.max(0, Math.min(this.length - 1, to));
    this.clear();
    if (!extend) { this.anchor = this.cursor; return; }
    const [first, last] = [this.anchor, this.cursor].sort((a, b) => a - b);
    for (let at = first; at <= last; at += 1) this.selected[this.rows[at]] = 1;
    this.many = last - first + 1;
  }

  toggle(at) {
    this.cursor = this.anchor = at;
    this.selected[this.row] = 1 - this.selected[this.row];
    this.many += this.selected[this.row] ? 1 : -1;
  }

  /** Selects what is shown and fits. */
  select(fits) {
    this.clear();
    for (const row of this.rows) if (fits(row)) { this.selected[row] = 1; this.many += 1; }
  }

  clear() {
    if (this.many) this.selected.fill(0);
    this.many = 0;
  }

  /** Where a step leads: up and down stay in their column while there is a line, and down from the last line but one reaches the end. */
  reach(step, columns) {
    const to = this.cursor + step;
    if (Math.abs(step) === 1) return to;
    if (to < 0) return Math.abs(step) > columns ? this.cursor % columns : this.cursor;
    if (to < this.length) return to;
    const line = (at) => Math.floor(at / columns);
    return line(this.cursor) === line(this.length - 1) ? this.cursor : this.length - 1;
  }
}
