// The page of one latent, named by the fragment: #latent=12.
"use strict";

(() => {
  const { h, load, site, format, heat, charts, bit, item, missing, complain, offsets } = saetool;
  const by = (id) => document.getElementById(id);
  const GROUPS = ["top", "interval", "random"];
  let turn = 0; // counts calls of show: an earlier one that is still waiting must not draw over a later one

  /** Cut one latent out of its chunk. */
  function record(chunk, latent) {
    const i = latent - chunk.values.start;
    chunk.starts = chunk.starts || offsets(chunk.example_counts);
    chunk.maps = chunk.maps || (chunk.heat_counts && heat.maps(chunk));
    const examples = [];
    for (let e = chunk.starts[i]; e < chunk.starts[i + 1]; e++) {
      examples.push({
        group: GROUPS[chunk.group[e]], interval: chunk.interval[e], image: chunk.image[e], patch: chunk.patch[e],
        value: chunk.value[e], held_out: chunk.held_out[e] === 1, map: chunk.maps(e),
      });
    }
    const size = chunk.values.stop - chunk.values.start;
    const part = (name) => {
      const array = chunk[name];
      return array ? array.subarray((i * array.length) / size, ((i + 1) * array.length) / size) : null;
    };
    return { i, examples, scale: chunk.heat_scale ? chunk.heat_scale[i] : 0, part, chunk };
  }

  /** Return a tile: the picture with its heat map, what the pointer is on, and what it is. */
  async function tile(example, found, grid, latent) {
    const facts = await site.image(example.image);
    const frame = heat.picture(facts, example.map, grid);
    const readout = h("span.number", {}, format("value", example.value));
    if (grid && facts.box && example.patch >= 0) {
      frame.append(heat.place(h("span.peak", { title: "Strongest patch" }), heat.patchBox(facts, example.patch, grid)));
      frame.addEventListener("pointermove", (event) => {
        const patch = heat.patchAt(event, frame, facts, grid);
        const value = patch < 0 ? null : patch === example.patch ? example.value : (heat.byteAt(example.map, patch) / 255) * found.scale;
        readout.textContent = patch < 0 ? "outside" : `${format("value", value)} at ${Math.floor(patch / grid[1])}, ${patch % grid[1]}`;
      });
      frame.addEventListener("pointerleave", () => { readout.textContent = format("value", example.value); });
    }
    const words = facts.labels.filter(([, value]) => value !== null).map(([, value]) => heat.labelText(value)).join(" · ");
    const target = `image.html#image=${example.image}&patch=${Math.max(example.patch, 0)}&latent=${latent}`;
    const held = example.held_out ? h("span.badge", { title: "Training never saw this image" }, "held out") : null;
    return h("figure.tile", { style: { "--ratio": facts.width / facts.height }, "data-image": example.image },
      facts.page ? h("a", { href: target, title: facts.path }, frame) : frame,
      h("figcaption", {}, h("span.line", {}, readout, held), h("span.clip.muted", { dir: "auto", title: words.slice(0, 300) }, words || facts.path)));
  }

  /** Return intervals of strength from the highest to the lowest, each with its bounds. */
  async function intervals(examples, found, grid, latent) {
    const count = Math.max(0, ...examples.map(({ interval }) => interval)) + 1;
    const blocks = [];
    for (let k = count - 1; k >= 0 && examples.length; k--) {
      const members = examples.filter(({ interval }) => interval === k);
      if (!members.length) continue;
      const bound = (share) => format("value", (found.scale * share) / found.intervals);
      const tiles = await Promise.all(members.map((example) => tile(example, found, grid, latent)));
      blocks.push(h("div.interval-row", {}, h("h3", {}, `${bound(k)} to ${bound(k + 1)}`), h("div.tiles.small", {}, ...tiles)));
    }
    return blocks;
  }

  /** Fill one section, or hide it where it has nothing. */
  function section(id, children) {
    by(`${id}-section`).hidden = !children.length;
    by(id).replaceChildren(...children);
  }

  /** Show every number of the table's row. */
  function statistics(model, latent) {
    const rows = model.columns.filter(({ label }) => label === null).map((column) =>
      h("div", { title: column.help }, h("dt", {}, column.title), h("dd.number", { "data-key": column.key }, format(column.form, model.table[column.key][latent]))));
    by("statistics").replaceChildren(...rows);
  }

  function histogram(found, edges) {
    const counts = found.part("histogram");
    by("histogram-section").hidden = !counts || !edges;
    if (!counts || !edges) return;
    const bins = Array.from(counts, (count, k) => ({
      low: Math.log10(edges[k]), high: Math.log10(edges[k + 1]), count,
      title: `${format("count", count)} tokens between ${format("value", edges[k])} and ${format("value", edges[k + 1])}` }));
    const used = bins.map((bin, k) => (bin.count ? k : -1)).filter((k) => k >= 0);
    const kept = used.length ? bins.slice(Math.max(0, used[0] - 1), used[used.length - 1] + 2) : bins;
    by("histogram").replaceChildren(charts.bars(kept, { label: "Histogram of the latent's positive activations", height: 170 }));
  }

  /** Draw where in the picture the latent fires on average. */
  function profile(found, grid) {
    const bytes = found.part("spatial_profile");
    const fits = bytes && grid && bytes.length === grid[0] * grid[1];
    by("profile-section").hidden = !fits;
    if (!fits) return;
    const positions = Array.from(bytes.keys()).filter((k) => bytes[k] > 0);
    const map = { positions, bytes: positions.map((k) => bytes[k]) };
    const frame = h("div.profile", { role: "img", "aria-label": "Mean activation at each position of the picture", style: { "aspect-ratio": `${grid[1]} / ${grid[0]}` } }, heat.canvas(map, grid));
    by("profile").replaceChildren(frame);
  }

  /** Show each class with AUROC, its interval of confidence, precision and share of mass. */
  function labels(found, facts, model, latent) {
    const { chunk, i } = found, pairs = facts.values.label_classes;
    const starts = chunk.label_counts ? offsets(chunk.label_counts) : null;
    const tables = new Map();
    for (let r = starts ? starts[i] : 0; starts && r < starts[i + 1]; r++) {
      const [label, name] = pairs[chunk.label_class[r]];
      const at = (key) => (chunk[`label_${key}`] ? chunk[`label_${key}`][r] : NaN);
      const cells = [format("unit", at("auroc")), format("unit", at("average_precision")), format("share", at("mass_share"))];
      const note = `fires on ${format("count", at("firing_images"))} of ${format("count", at("images"))} images of this class`;
      const row = { name, low: at("auroc_low"), middle: at("auroc"), high: at("auroc_high"), cells, note };
      tables.set(label, [...(tables.get(label) || []), row]);
    }
    by("labels-section").hidden = !tables.size;
    by("labels").replaceChildren(...[...tables].map(([label, rows]) => {
      rows.sort((a, b) => (b.middle || 0) - (a.middle || 0));
      const head = ["Class", "95% interval", "AUROC", "Precision", "Mass"].map((text) => h("th", { scope: "col" }, text));
      return h("div.scroll", {}, h("table.labels", {}, caption(label, model, latent), h("thead", {}, h("tr", {}, ...head)), charts.intervals(rows.slice(0, 50), { label })));
    }));
  }

  /** Return a label's name with how sure its association is and how much of the latent is in one class. */
  function caption(label, model, latent) {
    const words = [["q_value", "q", "probability"], ["purity", "purity", "unit"]].filter(([key]) => model.byKey.has(`${label}.${key}`)).map(([key, name, form]) =>
      h("span.beside.number", { title: model.byKey.get(`${label}.${key}`).help }, `${name} ${format(form, model.number(`${label}.${key}`, latent))}`));
    return h("caption", {}, h("span", { dir: "auto" }, label), ...words);
  }

  /** List one kind of neighbors with their own pictures. */
  function neighbors(id, ids, values) {
    const rows = ids ? Array.from(ids).map((latent, k) => ({ latent, value: values[k] })).filter(({ latent }) => latent >= 0) : [];
    by(`${id}-section`).hidden = !rows.length;
    by(id).replaceChildren(...rows.map(({ latent, value }) => {
      const stamps = h("div.stamps");
      heat.glimpse(latent, 3).then((found) => stamps.replaceChildren(...found)).catch(complain);
      return h("li", {}, h("a.neighbor", { href: `#latent=${latent}` }, stamps, h("span", {}, `Latent ${latent}`), h("span.number.muted", {}, format("unit", value))));
    }));
  }

  function step(facts, latent, direction) {
    const { n_latents: n } = facts.values;
    for (let k = 1; k <= n; k++) {
      const next = (latent + direction * k + n * k) % n;
      if (bit(facts.live, next) && bit(facts.with_page, next)) return next;
    }
    return latent;
  }

  /** Return the latent that the fragment names; without one the first that is alive, and write it into the URL. */
  function asked(facts) {
    const named = item("latent", facts.values.n_latents);
    if (named !== null) return named;
    const first = Math.max(step(facts, -1, 1), 0);
    history.replaceState(null, "", `#latent=${first}`);
    return first;
  }

  async function show() {
    const mine = ++turn, facts = await site.ready, { n_latents: n, blocks } = facts.values;
    if (mine !== turn) return;
    const latent = asked(facts);
    if (typeof latent === "string") {
      absent(facts, `There is no latent ${latent}: they go from 0 to ${n - 1}.`);
      return;
    }
    const [chunk, table] = await Promise.all([
      bit(facts.with_page, latent) ? load(`latents/${Math.floor(latent / blocks.latents)}`) : null, load("table")]);
    if (mine !== turn) return;
    const found = chunk && record(chunk, latent), tiles = found && await examples(found, facts, latent);
    if (mine !== turn) return;
    const model = new saetool.model.Model(facts, table);
    missing(null);
    head(facts, model, latent);
    by("no-page").hidden = chunk !== null;
    by("found").hidden = chunk === null;
    similar(found?.part("neighbors_decoder")?.[0] ?? -1);
    if (found) fill(found, tiles, facts, model, latent);
    document.body.dataset.ready = String(latent);
  }

  /** Say that the fragment names no latent; the steps lead to the first and the last. */
  function absent(facts, text) {
    missing(text);
    by("title").textContent = "Latent";
    by("status").className = by("status").textContent = "";
    by("previous").href = `#latent=${step(facts, facts.values.n_latents, -1)}`;
    by("next").href = `#latent=${step(facts, -1, 1)}`;
    similar(-1);
    document.body.dataset.ready = "missing";
  }

  function head(facts, model, latent) {
    document.title = `Latent ${latent} · ${by("title").dataset.site}`;
    by("title").textContent = `Latent ${latent}`;
    const status = model.status(latent);
    by("status").className = `status ${status}`;
    by("status").textContent = status;
    by("previous").href = `#latent=${step(facts, latent, -1)}`;
    by("next").href = `#latent=${step(facts, latent, 1)}`;
    by("dead").hidden = status !== "dead";
    statistics(model, latent);
  }

  /** Link to the most similar latent; −1 is none. */
  function similar(latent) {
    by("similar").hidden = latent < 0;
    if (latent >= 0) by("similar").href = `#latent=${latent}`;
    else by("similar").removeAttribute("href");
  }

  /** Return the tiles of all examples, group by group. */
  async function examples(found, facts, latent) {
    const { grid } = facts.values;
    found.intervals = facts.values.intervals;
    const of = (name) => found.examples.filter((example) => example.group === name);
    const tiles = (name) => Promise.all(of(name).map((example) => tile(example, found, grid, latent)));
    const [top, random, rows] = await Promise.all([tiles("top"), tiles("random"), intervals(of("interval"), found, grid, latent)]);
    return { top, random, intervals: rows };
  }

  function fill(found, tiles, facts, model, latent) {
    neighbors("decoder", found.part("neighbors_decoder"), found.part("neighbors_decoder_value"));
    neighbors("coactivation", found.part("neighbors_coactivation"), found.part("neighbors_coactivation_value"));
    histogram(found, facts.histogram_edges);
    profile(found, facts.values.grid);
    labels(found, facts, model, latent);
    for (const [id, children] of Object.entries(tiles)) section(id, children);
    by("heat-bar").hidden = facts.values.grid === null;
    by("scale-high").textContent = format("value", model.table.max[latent]);
  }

  function opacity() {
    const slider = by("opacity");
    const set = () => document.documentElement.style.setProperty("--heat", slider.value / 100);
    slider.addEventListener("input", set);
    set();
  }

  document.addEventListener("DOMContentLoaded", () => {
    opacity();
    show().catch(complain);
    addEventListener("hashchange", () => {
      if (item("latent", Infinity) === null && location.hash) return; // a link to a part of this page
      scrollTo(0, 0);
      show().catch(complain);
    });
    addEventListener("keydown", (event) => {
      if (event.target.closest("input, select, textarea") || event.ctrlKey || event.metaKey || event.altKey) return;
      const slider = by("opacity");
      if (event.key === "ArrowLeft" || event.key === "k") by("previous").click();
      if (event.key === "ArrowRight" || event.key === "j") by("next").click();
      if (event.key === "r") document.querySelector("a[data-random]").click();
      if (event.key === "s" && !by("similar").hidden) by("similar").click();
      if (event.key === "h") {
        slider.value = Number(slider.value) > 0 ? 0 : 85;
        slider.dispatchEvent(new Event("input"));
      }
    });
  });
})();
