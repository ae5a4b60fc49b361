// Latents side by side, named by the fragment: #latents=1116,4734.
"use strict";

(() => {
  const { h, site, format, crops, record, parameters, complain } = saetool;
  const by = (id) => document.getElementById(id);
  const MOST = 6, CROPS = 12;
  let turn = 0;

  /** Return the latents of the fragment, each once, and what in it is none. */
  function asked(n) {
    const texts = (parameters().get("latents") ?? "").split(/[,\s]+/).filter(Boolean);
    const fits = (text) => /^\d+$/.test(text) && Number(text) < n;
    const named = [...new Set(texts.filter(fits).map(Number))];
    return { latents: named.slice(0, MOST), beyond: named.slice(MOST), wrong: texts.filter((text) => !fits(text)) };
  }

  const address = (latents) => `#latents=${latents.join(",")}`;

  async function show() {
    const mine = ++turn, facts = await site.ready, { latents, beyond, wrong } = asked(facts.values.n_latents);
    const found = (await Promise.all(latents.map(record.of)));
    if (mine !== turn) return;
    const without = latents.filter((_, k) => !found[k]), records = found.filter(Boolean);
    const problems = [...wrong.map((text) => `There is no latent ${text.slice(0, 40)}: they go from 0 to ${format("count", facts.values.n_latents - 1)}.`),
      ...without.map((latent) => `Latent ${latent} has no page in this report (report.latents, report.max_mb).`)];
    if (beyond.length) problems.push(`${MOST} latents are compared at most: ${beyond.join(", ").slice(0, 60)} left out.`);
    if (records.length < 2 && !problems.length) problems.push("Name the latents to compare, two at least.");
    by("missing").hidden = !problems.length;
    by("missing").textContent = problems.join(" ");
    by("sides").replaceChildren(...records.map((one) => side(facts, one, latents)));
    by("pairs").replaceChildren(...pairs(records).map(([a, b]) => pair(facts, a, b)));
    by("pairs-section").hidden = records.length < 2;
    document.title = `Compare ${latents.join(", ")} · ${by("title").dataset.site}`;
    document.body.dataset.ready = latents.join(",") || "none";
  }

  const pairs = (all) => all.flatMap((a, k) => all.slice(k + 1).map((b) => [a, b]));

  const strip = (facts, examples, latent) => h("div.crops", {}, ...examples.slice(0, CROPS).map((one, k) =>
    h("a", { href: `image.html#image=${one.facts.row}&patch=${Math.max(one.patch, 0)}&latent=${latent}`, "aria-label": `Image ${one.facts.row}` }, crops.crop(facts, record.crop(one), { alt: k ? "" : `Around the peak of latent ${latent}` }))));

  function side(facts, one, latents) {
    const keys = ["image_frequency", "token_frequency", "max", "mean_firing", "monosemanticity_excess", "spatial_entropy", "neighbor_similarity"];
    const rows = keys.map((key) => facts.values.columns.find((column) => column.key === key)).filter(Boolean).map((column) =>
      h("div", {}, h("dt", {}, column.title), h("dd.number", {}, format(column.form, one.number(column.key)))));
    return h("article.side", { "data-latent": one.latent },
      h("header.side-head", {}, h("h2", {}, h("a", { href: `latent.html#latent=${one.latent}` }, `Latent ${one.latent}`)), h(`span.status.${one.status}`, {}, one.status),
        h("a.chip", { href: address(latents.filter((latent) => latent !== one.latent)), "aria-label": `Take latent ${one.latent} away` }, "×")),
      h("p", { dir: "auto" }, one.words), strip(facts, one.of("top"), one.latent), h("dl.statistics.few", {}, ...rows));
  }

  /** Show what two have in common, and images of only one of them. */
  function pair(facts, a, b) {
    const shared = record.overlap(a, b), { sample, n_images: n } = facts.values;
    const of = sample === n ? "" : ` of a sample of ${format("count", sample)} images`;
    const rows = [["Cosine of directions", format("unit", record.cosine(a, b))]];
    if (shared) {
      rows.push([`Both fire${of}`, format("count", shared.both)], [`Only ${a.latent}`, format("count", shared.onlyA)], [`Only ${b.latent}`, format("count", shared.onlyB)], ["Overlap (Jaccard)", format("share", shared.jaccard)]);
    }
    const alone = [[a, b], [b, a]].map(([one, other]) => {
      const unique = new Map(one.examples.filter(({ facts: image }) => record.fires(facts, other, image.row) === false).map((example) => [example.facts.row, example]));
      const examples = [...unique.values()].sort((x, y) => y.value - x.value);
      return h("div.alone", {}, h("h3", {}, `Images of ${one.latent} on which ${other.latent} is silent`), examples.length ? strip(facts, examples, one.latent) : h("p.muted", {}, "None among its examples."));
    });
    return h("article.pair", { "data-pair": `${a.latent},${b.latent}` }, h("h2", {}, `${a.latent} and ${b.latent}`),
      h("dl.statistics.few", {}, ...rows.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd.number", {}, value)))), ...alone);
  }

  document.addEventListener("DOMContentLoaded", () => {
    by("add").addEventListener("submit", async (event) => {
      event.preventDefault();
      const { latents } = asked((await site.ready).values.n_latents), text = by("add-latent").value.trim();
      if (text) location.replace(address([...latents, text]));
      by("add-latent").value = "";
    });
    addEventListener("hashchange", () => { if (location.hash !== "#main") show().catch(complain); });
    show().catch(complain);
  });
})();
