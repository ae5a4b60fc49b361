// The landing page: strips of crops, doors, the plane of latents and their table, training curves.
"use strict";

(() => {
  const { h, load, site, format, charts, crops, json, list, numbers, complain } = saetool;
  const by = (id) => document.getElementById(id);

  async function curves() {
    const { charts: found, pareto } = (await load("curves")).values;
    const points = pareto.map((one) => ({ ...one, interval: one.fvu_interval }));
    if (points.length) {
      by("plane").replaceChildren(saetool.plane(points));
      by("plane").append(charts.saved(by("plane").querySelector("svg"), "Evaluation") ?? "");
    }
    by("training").hidden = !found.length;
    by("curves").replaceChildren(...found.map(charts.lines));
    by("clock").textContent = found.length && found[0].clock === "step" ? "steps" : "activations";
  }

  /** Show the first look and the doors to junk: all that is needed comes in one small chunk. */
  async function look() {
    const facts = await site.ready, chunk = await load("first"), strips = json(chunk.strips), { each } = chunk.values;
    const unseen = strips.some(({ held_out }) => held_out);
    by("look-how").textContent = unseen ? "Chosen on training images, shown on held-out ones." : "Shown on all images: too few of them are held out.";
    const rows = strips.map(({ latent, words, held_out }, k) => {
      const found = Array.from({ length: each }, (_, i) => crops.at(facts, chunk, k * each + i)).filter(({ image }) => image >= 0);
      return h("a.strip", { href: list.address(latent, ""), "data-latent": latent },
        h("span.crops", {}, ...found.map((one, i) => crops.crop(facts, one, { alt: i ? "" : `Strongest image of latent ${latent}` }))),
        h("span.strip-words", {}, h("strong", {}, `Latent ${latent}`), h("span.muted", { dir: "auto" }, ` ${words}${held_out || !unseen ? "" : " (it fires on few held-out images: shown on all)"}`)));
    });
    by("look").hidden = !rows.length;
    by("strips").replaceChildren(...rows);
    by("junk").replaceChildren(...json(chunk.junk).filter(({ count }) => count).map(({ name, count, filters, help }) =>
      h("li", {}, h("a", { href: `#${filterFragment(filters)}`, "data-junk": name }, `${name}: ${format("count", count)}`), h("span.muted", {}, ` ${help}`))));
    by("junk-door").hidden = !by("junk").children.length;
  }

  function filterFragment(filters) {
    const found = new URLSearchParams();
    for (const text of filters) {
      if (text.includes(":")) found.append("range", text);
      else found.set(...text.split("="));
    }
    return found.toString();
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
      label: `How many latents fire how often; ${dead.count} are dead`, extra: dead, onpick, height: 330, hue: "frequency", xText: charts.percentPower, xTitle: "share of tokens", yTitle: "latents" }));
  }

  const option = (value, text, selected) => h("option", { value, selected }, text);

  /** Fill and connect everything above the table. */
  function controls(model) {
    const presets = saetool.model.presets(model);
    by("presets").replaceChildren(...presets.map((preset) => {
      const link = h("a.chip", { href: `#${model.fragment({ ...model.filters, ...preset.filters() })}`, "data-preset": preset.name }, preset.name);
      link.addEventListener("click", (event) => {
        if (!list.plain(event)) return;
        event.preventDefault();
        model.set(preset.filters());
      });
      return link;
    }));
    by("statuses").replaceChildren(...model.statuses.map((name) => h("label.check", {}, h("input", {
      type: "checkbox", value: name, onchange: () => model.set({
        status: [...by("statuses").querySelectorAll("input:checked")].map((input) => input.value) }) }), h(`span.status.${name}`, {}, name))));
    const label = by("label");
    by("label-field").hidden = model.labels.length < 2;
    label.replaceChildren(...model.labels.map((name) => option(name, name.slice(0, 60), name === model.filters.label)));
    label.addEventListener("change", () => model.setLabel(label.value));
    by("clear").addEventListener("click", () => model.set(presets[0].filters()));
    by("csv").addEventListener("click", () => saetool.download.csv(model));
    by("svg").addEventListener("click", () => saetool.download.svg(by("frequencies").querySelector("svg"), "frequencies.svg"));
    by("png").addEventListener("click", () => saetool.download.png(by("scatter").querySelector("canvas"), "latents.png").catch(complain));
    const statuses = h("div", {}, h("dt", {}, "Status"), h("dd", {}, "Dead: never fires. Rare: too seldom to judge. Dense: on a large share of tokens."));
    by("meanings").replaceChildren(statuses, ...model.columns.filter(({ label: of }) => of === null || of === model.labels[0]).map(({ title, help }) =>
      h("div", {}, h("dt", {}, title), h("dd", {}, `${help}.`))));
    rangeForm(model);
  }

  function rangeForm(model) {
    const column = by("range-column"), low = by("range-low"), high = by("range-high"), said = by("range-error");
    const numeric = model.columns.filter(({ form }) => form !== "text");
    const title = ({ title: text, label }) => (label === null ? text : `${text} (${label.slice(0, 40)})`);
    column.replaceChildren(...numeric.map((one) => option(one.key, title(one))));
    const unit = () => { by("range-unit").hidden = !numbers.isPercent(model.byKey.get(column.value).form); };
    column.addEventListener("change", unit);
    unit();
    by("range").addEventListener("submit", (event) => {
      event.preventDefault();
      const { form } = model.byKey.get(column.value), ends = [low, high].map((input) => numbers.read(input.value, form));
      const wrong = ends.find(({ error }) => error)?.error ?? (ends[0].value > ends[1].value ? `Nothing lies from ${low.value.trim()} to ${high.value.trim()}: the first is larger.` : "");
      said.textContent = wrong;
      said.hidden = !wrong;
      if (wrong || (ends[0].value === undefined && ends[1].value === undefined)) return;
      model.setRange(column.value, ends[0].value ?? -Infinity, ends[1].value ?? Infinity);
      low.value = high.value = "";
    });
    const color = by("color");
    color.replaceChildren(option("status", "status"), ...numeric.map((one) => option(one.key, title(one))));
    color.value = [...["monosemanticity_excess", model.ofLabel("auroc"), "spatial_entropy"].filter((key) => model.byKey.has(key)), "status"][0];
    if (model.byKey.has(model.filters.color)) color.value = model.filters.color;
  }

  /** Show the present filters: as chips that can be taken off, in the inputs, and as a count. */
  function reflect(model) {
    const { q, status, ranges, sort, label } = model.filters;
    by("label").value = label ?? "";
    const text = (value, form) => (Number.isFinite(value) ? format(form, value) : "");
    const words = q ? [h("button.chip.on", { type: "button", title: "Remove this filter", onclick: () => model.set({ q: "" }) }, `“${q.slice(0, 60)}” ×`)] : [];
    by("chips").replaceChildren(...words, ...ranges.map(({ key, low, high }) => {
      const { title, form } = model.byKey.get(key);
      const bounds = Number.isFinite(low) && Number.isFinite(high) ? `${text(low, form)} to ${text(high, form)}` : Number.isFinite(low) ? `≥ ${text(low, form)}` : `≤ ${text(high, form)}`;
      return h("button.chip.on", { type: "button", title: "Remove this filter", onclick: () => model.setRange(key, -Infinity, Infinity) }, `${title} ${bounds} ×`);
    }));
    for (const input of by("statuses").querySelectorAll("input")) input.checked = status.includes(input.value);
    by("count").textContent = `${format("count", model.order.length)} of ${format("count", model.n)}`;
    by("clear").hidden = !q && !status.length && !ranges.length && sort === "latent";
    const same = (filters) => JSON.stringify([filters.q, filters.status, filters.ranges, filters.sort]) === JSON.stringify([q, status, ranges, sort]);
    for (const link of by("presets").children) {
      const preset = saetool.model.presets(model).find(({ name }) => name === link.dataset.preset);
      if (preset !== undefined && same(preset.filters())) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    }
  }

  /** Keep where the reader is, and go back there when the page is come back to. */
  function places(model, table) {
    const was = history.state;
    if (was && Number.isFinite(was.table)) {
      table.scroll(was.table);
      scrollTo(0, was.page);
    }
    addEventListener("pagehide", () => {
      list.keep(model.fragment(model.filters), model.order);
      history.replaceState({ table: table.view.scrollTop, page: scrollY }, "");
    });
  }

  async function start() {
    const facts = await site.ready, table = await load("table");
    const model = new saetool.model.Model(facts, table);
    controls(model);
    reflect(model);
    model.addEventListener("change", () => reflect(model));
    const rows = new saetool.table.Table(by("table"), model, facts);
    new saetool.scatter.Scatter(by("scatter"), model, by("color"), by("scatter-legend"));
    frequencies(model);
    places(model, rows);
    addEventListener("hashchange", () => {
      const text = location.hash.slice(1);
      if (text && !text.includes("=")) return model.write(); // a link to a part of the page: the filters stay, and stay in the URL
      if (text !== model.written) {
        model.set(model.read());
        by("latents").scrollIntoView();
      }
      return undefined;
    });
    if (location.hash.includes("=") && !history.state) by("latents").scrollIntoView();
    await curves();
    document.body.dataset.ready = "true";
  }

  document.addEventListener("DOMContentLoaded", () => {
    if (!by("table")) curves().catch(complain);
    if (by("figures")) saetool.figures.show(by("figures")).catch(complain);
    if (by("table")) look().then(start).catch(complain); // the strips first: the table is large
    else document.body.dataset.ready = "true";
  });
})();
