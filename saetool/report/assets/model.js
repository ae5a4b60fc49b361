// The table of latents as arrays: filters, order, and both as a URL fragment.
"use strict";

saetool.model = (() => {
  const { parameters } = saetool;

  /** Wrap the table chunk: columns by key, and which rows pass the present filters in which order. */
  class Model extends EventTarget {
    constructor(site, table, fragment = null) {
      super();
      this.site = site.values;
      this.table = table;
      this.columns = site.values.columns;
      this.byKey = new Map(this.columns.map((column) => [column.key, column]));
      this.n = this.site.n_latents;
      this.statuses = this.site.statuses;
      const labels = new Set(this.columns.map((column) => column.label).filter((label) => label !== null));
      // A label of which every image has the same class tells nothing apart: it comes last.
      const tells = (label) => this.byKey.has(`${label}.auroc`);
      this.labels = [...labels].sort((a, b) => tells(b) - tells(a));
      this.filters = this.read(fragment === null ? parameters() : new URLSearchParams(fragment));
      this.apply();
    }

    /** Return a cell's number (NaN for none); `latent` counts as a column. */
    number(key, i) {
      return key === "latent" ? i : this.table[key][i];
    }

    /** Return a cell's text where the column holds texts. */
    text(key, i) {
      const code = this.table[key][i];
      return code < 0 ? null : this.table.values.texts[key][code];
    }

    status(i) {
      return this.statuses[this.table.status[i]];
    }

    /** Return the key of a statistic of the chosen label, or null where there is none. */
    ofLabel(name) {
      const key = `${this.filters.label}.${name}`;
      return this.byKey.has(key) ? key : null;
    }

    empty() {
      return { q: "", status: [], ranges: [], sort: "latent", label: this.labels[0] ?? null, color: "" };
    }

    /** Read the filters from the URL's fragment; what does not fit is passed over. */
    read(found = parameters()) {
      const filters = this.empty();
      filters.q = found.get("q") ?? "";
      filters.status = (found.get("status") ?? "").split(",").filter((name) => this.statuses.includes(name));
      const sort = found.get("sort") ?? "latent";
      if (this.sortable(sort.replace(/^-/, ""))) filters.sort = sort;
      if (this.labels.includes(found.get("label"))) filters.label = found.get("label");
      filters.color = found.get("color") ?? "";
      for (const text of found.getAll("range")) {
        const [high, low, ...key] = text.split(":").reverse();
        const range = { key: key.reverse().join(":"), low: numberOr(low, -Infinity), high: numberOr(high, Infinity) };
        if (this.byKey.has(range.key)) filters.ranges.push(range);
      }
      return filters;
    }

    sortable(key) {
      return key === "latent" || key === "status" || this.byKey.has(key);
    }

    /** Change some filters, then filter, sort, tell listeners and write the URL. */
    set(changes) {
      Object.assign(this.filters, changes);
      this.apply();
      this.write();
    }

    /** Set or remove the range of one column. */
    setRange(key, low, high) {
      const others = this.filters.ranges.filter((range) => range.key !== key);
      const none = low === -Infinity && high === Infinity;
      this.set({ ranges: none ? others : [...others, { key, low, high }] });
    }

    /** Choose a label; filters and order by a statistic of the one before are of this one now. */
    setLabel(label) {
      const { label: before, ranges, sort } = this.filters, [, down, key] = sort.match(/^(-?)(.*)$/);
      const moved = (from) => (from.startsWith(`${before}.`) ? `${label}${from.slice(before.length)}` : from);
      const kept = ranges.map((range) => ({ ...range, key: moved(range.key) })).filter((range) => this.byKey.has(range.key));
      this.set({ label, ranges: kept, sort: this.sortable(moved(key)) ? `${down}${moved(key)}` : "latent" });
    }

    range(key) {
      return this.filters.ranges.find((range) => range.key === key) ?? { key, low: -Infinity, high: Infinity };
    }

    write() {
      this.written = this.fragment(this.filters);
      history.replaceState(history.state, "", this.written ? `#${this.written}` : location.pathname);
    }

    /** Return filters as a URL's fragment, "" for none. */
    fragment({ q, status, ranges, sort, label, color }) {
      const found = new URLSearchParams();
      if (q) found.set("q", q);
      if (status.length) found.set("status", status.join(","));
      if (sort !== "latent") found.set("sort", sort);
      if (label !== null && label !== this.labels[0]) found.set("label", label);
      if (color) found.set("color", color);
      for (const { key, low, high } of ranges) found.append("range", `${key}:${endText(low)}:${endText(high)}`);
      return found.toString();
    }

    /** Recompute which rows pass (mask) and their order. */
    apply() {
      const { q, status, ranges } = this.filters;
      const wanted = status.length ? this.statuses.map((name) => status.includes(name)) : null;
      const matches = this.matcher(q.trim().toLowerCase());
      const passing = [];
      this.mask = new Uint8Array(this.n);
      for (let i = 0; i < this.n; i++) {
        if (wanted && !wanted[this.table.status[i]]) continue;
        if (!ranges.every(({ key, low, high }) => this.table[key][i] >= low && this.table[key][i] <= high)) continue;
        if (matches && !matches(i)) continue;
        this.mask[i] = 1;
        passing.push(i);
      }
      this.order = this.sorted(passing);
      this.dispatchEvent(new Event("change"));
    }

    /**
     * Return a test of a row against typed text: a latent's number, a status, or part of its best class by any label;
     * in quotes it is the whole name of its best class by the chosen label.
     */
    matcher(text) {
      if (!text) return null;
      const whole = text.match(/^"(.*)"$/s)?.[1], own = this.ofLabel("best_class");
      if (whole !== undefined && own) {
        const codes = this.table[own], fits = this.table.values.texts[own].map((name) => name.trim().toLowerCase() === whole.trim());
        return (i) => codes[i] >= 0 && fits[codes[i]];
      }
      const best = this.columns.filter(({ key, form }) => form === "text" && key.endsWith(".best_class")).map(({ key }) =>
        [this.table[key], this.table.values.texts[key].map((name) => name.toLowerCase().includes(text))]);
      return (i) => String(i) === text || this.status(i) === text || best.some(([codes, fits]) => codes[i] >= 0 && fits[codes[i]]);
    }

    /** Sort rows by the chosen column; none comes last, ties by number. */
    sorted(rows) {
      const down = this.filters.sort.startsWith("-");
      const key = this.filters.sort.replace(/^-/, "");
      if (key === "latent") return Int32Array.from(down ? rows.reverse() : rows);
      const values = this.table[key], text = this.byKey.get(key)?.form === "text";
      const none = (value) => Number.isNaN(value) || (text && value < 0);
      const sign = down ? -1 : 1;
      rows.sort((a, b) => {
        const x = values[a], y = values[b], absent = none(x) - none(y);
        return absent || (none(x) ? a - b : sign * (x - y) || a - b);
      });
      return Int32Array.from(rows);
    }
  }

  const MIN_IMAGES = 8; // on fewer, an association with a label says little
  const POSITIONAL = 0.5; // entropy over positions below which a latent is one of a place rather than of what is there
  const MAX_Q = 0.05; // share of false discoveries among the latents shown

  const numberOr = (text, otherwise) => (text === "" || text === undefined || Number.isNaN(Number(text)) ? otherwise : Number(text));
  const endText = (value) => (Number.isFinite(value) ? String(+value.toPrecision(6)) : "");

  /** The ready-made views, each a change of filters; those whose columns are missing are left out. */
  function presets(model) {
    const has = (key) => key !== null && model.byKey.has(key);
    const plain = { q: "", status: [], ranges: [] };
    const auroc = () => model.ofLabel("auroc");
    const often = () => (has("image_count") ? [{ key: "image_count", low: MIN_IMAGES, high: Infinity }] : []);
    // What fires at one place of the picture is alike for that reason: it has a view of its own.
    const anywhere = () => (has("spatial_entropy") ? [{ key: "spatial_entropy", low: POSITIONAL, high: Infinity }] : []);
    // By the lower end of the interval, among those that fire on enough images and stand the test over all latents.
    const sure = () => (has(model.ofLabel("q_value")) ? [{ key: model.ofLabel("q_value"), low: -Infinity, high: MAX_Q }] : []);
    return [
      { name: "All", filters: () => ({ ...plain, sort: "latent" }) },
      has("monosemanticity_low") && { name: "Most specific", filters: () => ({ ...plain, status: ["ok"], ranges: [...often(), ...anywhere()], sort: "-monosemanticity_low" }) },
      has(auroc()) && { name: "Most associated with a label", filters: () => ({ ...plain, status: ["ok", "dense"], ranges: [...sure(), ...often()], sort: `-${model.ofLabel("auroc_low") ?? auroc()}` }) },
      has("max") && { name: "Strongest", filters: () => ({ ...plain, sort: "-max" }) },
    ].filter(Boolean);
  }

  return { Model, presets };
})();
