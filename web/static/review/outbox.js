/* What is on its way to the server: one after the other, in the order it was decided, and again and again until the server has it. */

const PAUSES = [1, 2, 5, 10, 20]; // seconds before each further try
const SMALL = 50_000; // bytes: what a browser still sends when the tab is closed may have 64 kB in all

export class Outbox {
  /** `tell(state, sentence)`: "saving", "saved", or "stuck" with a sentence. */
  constructor(tell) {
    this.tell = tell;
    this.waiting = [];
    this.busy = false;
    addEventListener("online", () => this.now());
    addEventListener("beforeunload", (event) => { if (this.waiting.length) event.preventDefault(); });
    addEventListener("pagehide", () => { for (const item of this.waiting.slice(this.busy ? 1 : 0)) this.send(item).catch(() => {}); });
  }

  /** Sends a request; `refused(sentence)` is called if the server will not take it, `done()` when it has it. */
  add(method, address, body, { done, refused }) {
    this.waiting.push({ method, address, body: body === undefined ? undefined : JSON.stringify(body), done, refused, tries: 0 });
    this.tell("saving");
    this.pump();
  }

  /** Resolves when nothing waits any more. */
  empty() { return this.waiting.length ? new Promise((resolve) => { this.whenEmpty = resolve; }) : Promise.resolve(); }

  now() { this.wake?.(); }

  send({ method, address, body }) {
    return fetch(address, { method, body, headers: { "Content-Type": "application/json" }, keepalive: (body || "").length < SMALL });
  }

  async pump() {
    if (this.busy) return;
    this.busy = true;
    for (let item = this.waiting[0]; item; [item] = this.waiting) {
      const answer = await this.send(item).catch(() => null);
      if (answer?.ok) {
        this.waiting.shift();
        item.done?.();
      } else if (answer && answer.status < 500 && answer.status !== 429) {
        this.waiting.shift();
        const problem = await answer.json().catch(() => ({}));
        item.refused?.(problem.detail || `The server answered ${answer.status}.`);
      } else {
        await this.pause(item, answer);
      }
    }
    this.busy = false;
    this.tell("saved");
    this.whenEmpty?.();
    this.whenEmpty = null;
  }

  async pause(item, answer) {
    const what = this.waiting.length === 1 ? "The last action is" : `The last ${this.waiting.length} actions are`;
    const why = answer ? (await answer.json().catch(() => ({}))).detail || `Darkroom answers ${answer.status}.` : "Darkroom does not answer.";
    this.tell("stuck", `${why} ${what} not saved yet. Leave this page open: it tries again by itself.`);
    const seconds = PAUSES[Math.min(item.tries, PAUSES.length - 1)];
    item.tries += 1;
    await new Promise((resolve) => { this.wake = resolve; setTimeout(resolve, seconds * 1000); });
    this.tell("saving");
  }
}
