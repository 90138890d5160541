/* Decisions: shown at once, sent at once as one entry of the log each, and undone one by one, also after the page was loaded again. */

import { ACTIONS, KEPT, RELABELLED } from "./rows.js";

const REMEMBERED = 500; // actions that can be undone after the page was loaded again

export class Trail {
  /** `changed(rows)` is told which images look different, `refresh()` asks the server what is true, `wrong(sentence)` says what went wrong. */
  constructor({ rows, outbox, address, name, changed, refresh, wrong }) {
    Object.assign(this, { rows, outbox, address, key: `review ${name}`, changed, refresh, wrong });
    this.entries = recalled(this.key); // {id, before: [row, state, given] each, or nothing if it was made before the page was loaded}
  }

  get length() { return this.entries.length; }

  /** What an image is when it has a label: if it had that before, it is kept. */
  relabelled(row, label) { return this.rows.columns.label.rows[row] === label ? { state: KEPT, given: 0 } : { state: RELABELLED, given: label }; }

  /** Decides about rows: `after(row)` gives {state, given}. Returns how many change. */
  decide(targets, after) {
    const { rows } = this;
    const told = targets.map((row) => ({ row, ...after(row) })).filter(({ row, state, given }) => state !== rows.state[row] || (state === RELABELLED && given !== rows.given[row]));
    if (!told.length) return 0;
    const entry = { id: newId(), before: told.map(({ row }) => [row, rows.state[row], rows.given[row]]) };
    for (const { row, state, given } of told) { rows.state[row] = state; rows.given[row] = given; }
    this.entries.push(entry);
    this.remember();
    const names = Object.fromEntries(Object.entries(ACTIONS).map(([action, state]) => [state, action]));
    const edits = told.map(({ row, state, given }) => ({
      sha256: rows.sha256(row), action: names[state], why: "review", ...(state === RELABELLED ? { label: rows.labels[given] } : {}),
    }));
    this.outbox.add("POST", this.address, { id: entry.id, edits }, { refused: (why) => this.refused(entry, why) });
    this.changed(told.map(({ row }) => row));
    return told.length;
  }

  /** Takes the last action back; returns its rows, none of them if only the server knows them, or null if there is nothing to undo. */
  undo() {
    const entry = this.entries.pop();
    if (!entry) return null;
    this.remember();
    const refused = async (why) => { await this.refresh(); this.wrong(`Not undone: ${why}`); };
    this.outbox.add("DELETE", `${this.address}/${entry.id}`, undefined, { refused, done: entry.before ? undefined : this.refresh });
    const before = entry.before || [];
    for (const [row, state, given] of before) { this.rows.state[row] = state; this.rows.given[row] = given; }
    this.changed(before.map(([row]) => row));
    return before.map(([row]) => row);
  }

  /** An action that the server does not take: what is true is asked of it, in case more was built on that. */
  async refused(entry, why) {
    this.entries = this.entries.filter((other) => other !== entry);
    this.remember();
    await this.refresh();
    this.wrong(`Not saved: ${why}`, entry.before[0][0]);
  }

  remember() {
    try { sessionStorage.setItem(this.key, JSON.stringify(this.entries.slice(-REMEMBERED).map(({ id }) => id))); } catch { /* private window: not remembered */ }
  }
}

function recalled(key) {
  try { return JSON.parse(sessionStorage.getItem(key) || "[]").map((id) => ({ id })); } catch { return []; }
}

function newId() {
  return [...crypto.getRandomValues(new Uint8Array(20))].map((byte) => "0123456789abcdefghijklmnopqrstuv"[byte & 31]).join("");
}
