// The landing page: a first look, training curves, the plane of latents and their table.
"use strict";

(() => {
  const { h, load, site, format, heat, charts, complain } = saetool;
  const by = (id) => document.getElementById(id);
  const GALLERY = 12;

  async function curves() {
    const { charts: found, pareto } = (await load("curves")).values;
    const points = pareto.map((one) => ({ ...one, interval: one.fvu_interval }));
    if (points.length) by("plane").replaceChildren(saetool.plane(points));
    by("training").hidden = !found.length;
    by("curves").replaceChildren(...found.map(charts.lines));
    by("clock").textContent = found.length && found[0].clock === "step" ? "steps" : "activations";
  }

  /** Return latents by a column, largest first, of those that fire on enough images and pass a test. */
  function ranked(model, key, test = () => true) {
    const rows = [], fired = model.table.image_count;
    for (let i = 0; i < model.n; i++) {
      if (model.status(i) === "ok" && model.table[key][i] >= 0 && (!fired || fired[i] >= saetool.model.MIN_IMAGES) && test(i)) rows.push(i);
    }
    return rows.sort((a, b) => model.table[key][b] - model.table[key][a] || a - b);
  }

  /** Return what to choose from, in words and as ranked lists [{rows, note(latent)}] that are drawn from in turn. */
  function looks(model) {
    const share = (latent) => format("share", model.number("token_frequency", latent));
    const lists = model.labels.filter((label) => model.byKey.has(`${label}.auroc`)).flatMap((label) => {
      const best = `${label}.best_class`, auroc = `${label}.auroc`, low = `${label}.auroc_low`;
      const q = model.table[`${label}.q_value`], order = model.byKey.has(low) ? low : auroc;
      if (!model.byKey.has(best)) return [];
      return model.table.values.texts[best].map((name, code) => ({
        rows: ranked(model, order, (i) => model.table[best][i] === code && (!q || q[i] <= saetool.model.MAX_Q)),
        note: (latent) => `${name.slice(0, 60)} · ${format("unit", model.number(auroc, latent))}`,
      }));
    });
    // Labels first: the most specific latents by embeddings are often those of near copies.
    if (lists.length) return ["Latents that tell the labels' classes apart best (class and AUROC below each)", lists];
    const key = model.byKey.has("monosemanticity") ? "monosemanticity" : "max";
    return [key === "max" ? "The strongest latents" : "The most specific latents", [{ rows: ranked(model, key), note: share }]];
  }

  /** Choose latents for the first look, each with another best image: [{latent, note}]. */
  function chosen(model) {
    const [words, lists] = looks(model), images = new Set(), found = [];
    by("look-words").textContent = words;
    const taken = (i) => found.some(({ latent }) => latent === i) || images.has(model.table.best_image[i]);
    for (let round = 0; round < GALLERY && found.length < GALLERY; round++) {
      for (const { rows, note } of lists) {
        const latent = rows.find((i) => !taken(i));
        if (latent === undefined || found.length === GALLERY) continue;
        images.add(model.table.best_image[latent]);
        found.push({ latent, note: note(latent) });
      }
    }
    return found;
  }

  function gallery(model) {
    const cards = chosen(model).map(({ latent, note }) => {
      const stamps = h("div.stamps");
      heat.glimpse(latent).then((found) => stamps.replaceChildren(...found)).catch(complain);
      return h("a.card", { href: `latent.html#latent=${latent}` }, stamps, h("span.card-name", {}, `Latent ${latent}`), h("span.clip.muted", { dir: "auto" }, note));
    });
    by("look").hidden = !cards.length;
    by("gallery").replaceChildren(...cards);
  }

  /** Draw how often latents fire, in decades, the dead ones as a bar of their own. */
  function frequencies(model) {
    const values = model.table.token_frequency;
    const logs = [];
    for (let i = 0; i < model.n; i++) if (values[i] > 0) logs.push(Math.log10(values[i]));
    if (!logs.length) return;
    const low = Math.floor(logs.reduce((a, b) => Math.min(a, b)) * 5) / 5;
    const count = Math.max(1, Math.round(-low * 5));
    const bins = Array.from({ length: count }, (_, k) => ({ low: low + k / 5, high: low + (k + 1) / 5, count: 0 }));
    for (const v of logs) bins[Math.min(count - 1, Math.max(0, Math.floor((v - low) * 5 + 1e-9)))].count++;
    for (const bin of bins) bin.title = `${format("count", bin.count)} latents fire on ${format("share", 10 ** bin.low)} to ${format("share", 10 ** bin.high)} of tokens`;
    const dead = { name: "dead", className: "dead", count: model.n - logs.length, title: `${format("count", model.n - logs.length)} latents never fire` };
    const onpick = (bin) => (bin === dead
      ? model.set({ status: ["dead"], ranges: [] })
      : model.setRange("token_frequency", 10 ** bin.low, 10 ** bin.high));
    by("frequencies").replaceChildren(charts.bars([dead, ...bins], {
      label: `How many latents fire how often; ${dead.count} are dead`, extra: dead, onpick, height: 330 }));
  }

  function option(value, text, selected) {
    return h("option", { value, selected }, text);
  }

  /** Fill and connect everything above the table. */
  function controls(model) {
    const presets = saetool.model.presets(model);
    by("presets").replaceChildren(...presets.map((preset) =>
      h("button.chip", { type: "button", "data-preset": preset.name, onclick: () => model.set(preset.filters()) }, preset.name)));
    const search = by("search");
    search.addEventListener("input", () => model.set({ q: search.value }));
    by("statuses").replaceChildren(...model.statuses.map((name) => h("label.check", {}, h("input", {
      type: "checkbox", value: name, onchange: () => model.set({
        status: [...by("statuses").querySelectorAll("input:checked")].map((input) => input.value) }) }), h(`span.status.${name}`, {}, name))));
    const label = by("label");
    by("label-field").hidden = model.labels.length < 2;
    label.replaceChildren(...model.labels.map((name) => option(name, name.slice(0, 60), name === model.filters.label)));
    label.addEventListener("change", () => model.set({ label: label.value }));
    by("clear").addEventListener("click", () => model.set(presets[0].filters()));
    rangeForm(model);
  }

  function rangeForm(model) {
    const column = by("range-column"), low = by("range-low"), high = by("range-high");
    const numeric = model.columns.filter(({ form }) => form !== "text");
    const title = ({ title: text, label }) => (label === null ? text : `${text} (${label.slice(0, 40)})`);
    column.replaceChildren(...numeric.map((one) => option(one.key, title(one))));
    by("range").addEventListener("submit", (event) => {
      event.preventDefault();
      const end = (input, otherwise) => (input.value.trim() === "" || Number.isNaN(Number(input.value)) ? otherwise : Number(input.value));
      model.setRange(column.value, end(low, -Infinity), end(high, Infinity));
      low.value = high.value = "";
    });
    const color = by("color");
    color.replaceChildren(option("status", "status"), ...numeric.map((one) => option(one.key, title(one))));
    color.value = [...["monosemanticity", model.ofLabel("auroc"), "spatial_entropy"].filter((key) => model.byKey.has(key)), "status"][0];
    if (model.byKey.has(model.filters.color)) color.value = model.filters.color;
  }

  /** Show the present filters: as chips that can be taken off, in the inputs, and as a count. */
  function reflect(model) {
    const { q, status, ranges, sort } = model.filters;
    const text = (value, form) => (Number.isFinite(value) ? format(form, value) : "");
    by("chips").replaceChildren(...ranges.map(({ key, low, high }) => {
      const { title, form } = model.byKey.get(key);
      const words = Number.isFinite(low) && Number.isFinite(high) ? `${text(low, form)} to ${text(high, form)}` : Number.isFinite(low) ? `≥ ${text(low, form)}` : `≤ ${text(high, form)}`;
      return h("button.chip.on", { type: "button", title: "Remove this filter", onclick: () => model.setRange(key, -Infinity, Infinity) }, `${title} ${words} ×`);
    }));
    if (by("search").value !== q) by("search").value = q;
    for (const input of by("statuses").querySelectorAll("input")) input.checked = status.includes(input.value);
    by("count").textContent = `${format("count", model.order.length)} of ${format("count", model.n)}`;
    by("clear").hidden = !q && !status.length && !ranges.length && sort === "latent";
    const same = (filters) => JSON.stringify([filters.q, filters.status, filters.ranges, filters.sort]) === JSON.stringify([q, status, ranges, sort]);
    for (const button of by("presets").children) {
      const preset = saetool.model.presets(model).find(({ name }) => name === button.dataset.preset);
      button.setAttribute("aria-pressed", preset !== undefined && same(preset.filters()));
    }
  }

  async function start() {
    const facts = await site.ready, table = await load("table");
    const model = new saetool.model.Model(facts, table);
    controls(model);
    reflect(model);
    model.addEventListener("change", () => reflect(model));
    new saetool.table.Table(by("table"), model, facts);
    new saetool.scatter.Scatter(by("scatter"), model, by("color"), by("scatter-legend"));
    frequencies(model);
    gallery(model);
    addEventListener("hashchange", () => {
      const text = location.hash.slice(1);
      if (text && !text.includes("=")) model.write(); // a link to a part of the page: the filters stay, and stay in the URL
      else if (text !== model.written) model.set(model.read());
    });
    addEventListener("keydown", (event) => {
      if (event.key === "/" && !event.target.closest("input, select, textarea")) {
        event.preventDefault();
        by("search").focus();
      }
    });
    document.body.dataset.ready = "true";
  }

  document.addEventListener("DOMContentLoaded", () => {
    curves().catch(complain);
    if (by("figures")) saetool.figures.show(by("figures")).catch(complain);
    if (by("table")) start().catch(complain);
    else document.body.dataset.ready = "true";
  });
})();
