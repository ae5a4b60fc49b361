// The panels of a latent's page: classes with base rates, histogram, position, neighbors, folded statistics.
"use strict";

saetool.panels = (() => {
  const { h, format, heat, charts, crops } = saetool;
  const by = (id) => document.getElementById(id);
  const FIRST_ROWS = 6;

  /** Show each label's classes: share of the latent's mass with a tick at the base rate, AUROC, precision; the rest folded. */
  function labels(found) {
    const names = [...new Set(found.labels.map(({ label }) => label))];
    by("labels-section").hidden = !names.length;
    by("labels").replaceChildren(...names.map((label) => {
      const rows = found.labels.filter((row) => row.label === label).sort((a, b) => (b.auroc || 0) - (a.auroc || 0));
      const table = (some) => h("table.labels", {}, h("thead", {}, h("tr", {}, ...[["Class"], ["Share of its activation"], ["", "against the base rate"], ["AUROC", "with 95% interval"], ["AUROC", "held-out images"], ["Precision", "base rate"]].map(([text, more]) =>
        h("th", { scope: "col" }, text, more ? h("span.note", {}, more) : null)))), h("tbody", { "aria-label": label.slice(0, 200) }, ...some.map(classRow)));
      const rest = rows.slice(FIRST_ROWS);
      return h("div.label-block", {}, h("h3", {}, h("span", { dir: "auto" }, label.slice(0, 200)), ...facts(found, label)), h("div.scroll", {}, table(rows.slice(0, FIRST_ROWS))),
        rest.length ? h("details", {}, h("summary", {}, `${format("count", rest.length)} more class${rest.length === 1 ? "" : "es"}`), h("div.scroll", {}, table(rest))) : null);
    }));
  }

  function classRow({ name, base, images, firing, auroc, low, high, unseen, unseenLow, unseenHigh, precision, mass }) {
    const note = `${format("share", mass)} of its activation is on this class, ${format("share", base)} of images are; fires on ${format("count", firing)} of ${format("count", images)} of them`;
    return h("tr", {}, h("th.clip", { scope: "row", title: name.slice(0, 500), dir: "auto" }, name),
      h("td.wide", { title: note }, charts.shareBar(mass, base, note)),
      h("td.number", {}, format("share", mass), h("span.note", {}, `base ${format("share", base)}`)),
      ...[[auroc, low, high], [unseen, unseenLow, unseenHigh]].map(([value, least, most]) =>
        h("td.number", {}, format("unit", value), h("span.note", {}, `${format("unit", least)} to ${format("unit", most)}`))),
      h("td.number", {}, format("unit", precision), h("span.note", {}, `base ${format("unit", base)}`)));
  }

  /** Return how sure a label's association is and how much of the latent is in one class, beside that class's base rate. */
  function facts(found, label) {
    const most = found.labels.filter((row) => row.label === label).reduce((a, b) => (b.mass > a.mass ? b : a));
    // The class of the purity may be none of those that the index keeps a latent's statistics of.
    const kept = Math.abs(most.mass - found.number(`${label}.purity`)) < 1e-5;
    return [["q_value", "q", "probability", ""], ["purity", "purity", "share", kept ? `, base rate ${format("share", most.base)}` : ""]].filter(([key]) => !Number.isNaN(found.number(`${label}.${key}`))).map(([key, name, form, more]) =>
      h("span.beside.number", {}, `${name} ${format(form, found.number(`${label}.${key}`))}${more}`));
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
    by("histogram").replaceChildren(charts.bars(kept, { label: "Histogram of the latent's positive activations", height: 170, hue: "activation", xTitle: "activation", yTitle: "tokens" }));
    for (const bar of by("histogram").querySelectorAll(".bar")) bar.addEventListener("pointerenter", () => { by("histogram-readout").textContent = bar.textContent; });
  }

  /** Draw where in the picture the latent fires on average. */
  function profile(found, grid) {
    const bytes = found.part("spatial_profile");
    const fits = bytes && grid && bytes.length === grid[0] * grid[1];
    by("profile-section").hidden = !fits;
    if (!fits) return;
    const positions = Array.from(bytes.keys()).filter((k) => bytes[k] > 0);
    const map = { positions, bytes: positions.map((k) => bytes[k]) };
    by("profile").replaceChildren(h("div.profile", { role: "img", "aria-label": "Mean activation at each position of the picture", style: { "aspect-ratio": `${grid[1]} / ${grid[0]}` } }, heat.canvas(map, grid)));
  }

  /** List one kind of neighbors, each with its strongest crop and a way to compare. */
  function neighbors(site, id, found) {
    const rows = found.neighbors(id);
    by(`${id}-section`).hidden = !rows.length;
    by(id).replaceChildren(...rows.map(({ latent, value, crop }) => h("li", {},
      h("a.neighbor", { href: `#latent=${latent}` }, crops.crop(site, crop), h("span", {}, `Latent ${latent}`), h("span.number.muted", {}, format("unit", value))),
      h("a.chip", { href: `compare.html#latents=${found.latent},${latent}`, "aria-label": `Compare with latent ${latent}` }, "compare"))));
  }

  /** Show every number of the table's row with what it means. */
  function statistics(site, found) {
    const rows = site.values.columns.filter(({ label, form }) => label === null && form !== "text").map((column) =>
      h("div", {}, h("dt", {}, column.title), h("dd", {}, h("span.number", { "data-key": column.key }, format(column.form, found.number(column.key))), h("span.note.muted", {}, help(site, column)))));
    by("statistics").replaceChildren(...rows);
  }

  function help(site, { key, help: words }) {
    return key === "monosemanticity" && site.values.chance !== null ? `${words}: any two score ${format("unit", site.values.chance)}` : words;
  }

  return { labels, histogram, profile, neighbors, statistics };
})();
