/* The images of a version as columns, what is decided about them, and which of them a filter shows. Knows nothing of the page. */

export const [UNDECIDED, KEPT, RELABELLED, DROPPED] = [0, 1, 2, 3];
export const STATES = ["undecided", "kept", "relabelled", "dropped"];
export const CHOICES = ["undecided", "decided", "kept", "relabelled", "dropped"]; // of a filter
export const ACTIONS = { keep: KEPT, relabel: RELABELLED, remove: DROPPED };
export const FIELDS = ["label", "state", "source", "licence", "finding", "split", "model", "sort"]; // of an address
const HEX = Array.from({ length: 256 }, (_, byte) => byte.toString(16).padStart(2, "0"));

function bytes(base64) {
  const text = atob(base64);
  const found = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i += 1) found[i] = text.charCodeAt(i);
  return found;
}

export class Rows {
  /** `index`: the answer of the API's `sheet`. A row is the number of an image in manifest order. */
  constructor(index) {
    this.count = index.images;
    this.digests = bytes(index.sha256);
    this.columns = Object.fromEntries(Object.entries(index.columns).map(([name, column]) => [name, { values: column.values, rows: Uint32Array.from(column.rows) }]));
    this.classes = index.columns.label.values; // those of the version: the first ten have a digit
    this.labels = [...this.classes]; // and behind them the new ones
    this.state = new Uint8Array(this.count);
    this.given = new Uint32Array(this.count); // the label of what is relabelled
    this.findings = { values: [], rows: [] }; // codes, and for each which rows have it
    this.forget();
  }

  sha256(row) {
    let text = "";
    for (let i = row * 32; i < row * 32 + 32; i += 1) text += HEX[this.digests[i]];
    return text;
  }

  find(start) {
    if (!/^[0-9a-f]{8,64}$/.test(start)) return -1;
    for (let row = 0; row < this.count; row += 1) if (this.sha256(row).startsWith(start)) return row;
    return -1;
  }

  ext(row) { return this.text("ext", row); }
  text(column, row) { return this.columns[column].values[this.columns[column].rows[row]]; }
  label(row) { return this.state[row] === RELABELLED ? this.given[row] : this.columns.label.rows[row]; }
  named(row) { return this.labels[this.label(row)]; }
  was(row) { return this.text("label", row); }
  has(row, code) { return Boolean(this.findings.rows[this.findings.values.indexOf(code)]?.[row]); }
  codes(row) { return this.findings.values.filter((_, code) => this.findings.rows[code][row]); }

  place(label) {
    const at = this.labels.indexOf(label);
    return at < 0 ? this.labels.push(label) - 1 : at;
  }

  /** Takes what people decided, as the API tells it. */
  decided(told) {
    this.state.fill(UNDECIDED);
    told.rows.forEach((row, i) => {
      this.state[row] = ACTIONS[told.action[i]];
      if (told.label[i] !== null) this.given[row] = this.place(told.label[i]);
    });
  }

  found(told) {
    this.findings.values = Object.keys(told).sort();
    this.findings.rows = this.findings.values.map((code) => {
      const has = new Uint8Array(this.count);
      for (const row of told[code]) has[row] = 1;
      return has;
    });
  }

  /** Takes what a model said: of a row it says nothing where `said` is 0, else it is the label's place plus one. */
  judged(told) {
    this.forget();
    const places = told.label.values.map((label) => this.place(label));
    told.rows.forEach((row, i) => {
      this.said[row] = places[told.label.rows[i]] + 1;
      this.probability[row] = told.probability[i];
    });
  }

  forget() {
    this.said = new Uint32Array(this.count);
    this.probability = new Float32Array(this.count);
  }

  otherwise(row) { return this.said[row] > 0 && this.said[row] - 1 !== this.label(row); }

  /** How many images each choice of each filter would show, and the rows that all of them show, sorted. */
  filter(wanted) {
    const facets = this.facets(wanted);
    const rows = [];
    for (let row = 0; row < this.count; row += 1) {
      let missed = null;
      let misses = 0;
      for (const facet of facets) if (!facet.fits(row)) { missed = facet; misses += 1; if (misses > 1) break; }
      if (misses > 1) continue;
      if (misses === 0) { rows.push(row); for (const facet of facets) facet.count(row); } else missed.count(row);
    }
    return { rows: this.sorted(rows, wanted), counts: Object.fromEntries(facets.map((facet) => [facet.name, facet.counts])) };
  }

  /** Whether a row fits a filter as things are now; what is shown stays as it was when the filter was chosen. */
  fitting(wanted) {
    const facets = this.facets(wanted);
    return (row) => facets.every((facet) => facet.fits(row));
  }

  facets(wanted) {
    const of = (name, has, told) => {
      const counts = new Map();
      const add = (value) => counts.set(value, (counts.get(value) || 0) + 1);
      return { name, counts, fits: has, count: (row) => { add(""); told(row).forEach(add); } };
    };
    const one = (name, values, value) => { // an address may name what is not there, and then nothing fits
      const want = values.indexOf(wanted[name]);
      return of(name, (row) => wanted[name] === undefined || value(row) === want, (row) => [values[value(row)]]);
    };
    const column = (name) => one(name, this.columns[name].values, (row) => this.columns[name].rows[row]);
    const state = (row) => (this.state[row] === UNDECIDED ? ["undecided"] : ["decided", STATES[this.state[row]]]);
    return [
      one("label", this.labels, (row) => this.label(row)), column("source"), column("licence"), column("split"),
      of("state", (row) => wanted.state === undefined || state(row).includes(wanted.state), state),
      of("finding", (row) => wanted.finding === undefined || this.has(row, wanted.finding), (row) => this.codes(row)),
      of("model", (row) => !wanted.model || this.otherwise(row), (row) => (this.otherwise(row) ? ["otherwise"] : [])),
    ];
  }

  sorted(rows, wanted) {
    const sort = wanted.sort || (wanted.model ? "probability" : "manifest");
    if (sort === "class") {
      const rank = [...this.labels.keys()].sort((a, b) => (this.labels[a] < this.labels[b] ? -1 : 1)).reduce((ranks, label, i) => ((ranks[label] = i), ranks), []);
      return rows.sort((a, b) => rank[this.label(a)] - rank[this.label(b)] || a - b);
    }
    return sort === "probability" ? rows.sort((a, b) => this.probability[b] - this.probability[a] || a - b) : rows;
  }
}
