// One search box: a latent's number, a class of any label, a status, part of a file name; what fits nothing is said.
"use strict";

saetool.search = (() => {
  const { h, load, site, format, crops, complain, json } = saetool;
  const MOST = 6, PICTURES = 8;
  const plural = (n, what) => `${format("count", n)} ${what}${n === 1 ? "" : "s"}`;

  /** Return the parts of the answer to typed text, best first. */
  async function answers(text) {
    const facts = await site.ready, wanted = text.trim().toLowerCase();
    const named = await Promise.all([latents(facts, wanted), classes(facts, wanted), images(facts, wanted)]);
    const found = [...named.flat(), ...statuses(facts, wanted)];
    return found.length ? found : [nothing(facts, text)];
  }

  function latents(facts, wanted) {
    const { n_latents: n } = facts.values, number = wanted.match(/^(?:latent\s*)?#?(\d+|\d{1,3}(?:,\d{3})+)$/)?.[1].replaceAll(",", "");
    if (number === undefined) return [];
    const latent = Number(number);
    if (latent >= n) return [h("p.muted.answer", {}, `There is no latent ${number}: they go from 0 to ${format("count", n - 1)}.`)];
    return [h("a.answer.found", { href: `latent.html#latent=${latent}` }, crops.stamps(latent), h("span", {}, `Latent ${latent}`))];
  }

  const statuses = (facts, wanted) => facts.values.statuses.filter((name) => name === wanted).map((name) =>
    h("a.answer.found", { href: `index.html#status=${name}` }, `All latents whose status is ${name}`));

  /** Return the classes, of any label, whose name has the text in it, each with the latents that tell it apart best. */
  async function classes(facts, wanted) {
    if (!wanted) return [];
    const chunk = await load("labels");
    if (!chunk.classes) return [];
    const list = (chunk.list = chunk.list || json(chunk.classes));
    const fits = list.map((one, k) => ({ one, k })).filter(({ one: [label, name] }) => name.toLowerCase().includes(wanted) || label.toLowerCase().includes(wanted));
    const exact = ({ one: [, name] }) => name.toLowerCase() === wanted;
    fits.sort((a, b) => exact(b) - exact(a) || a.k - b.k);
    const shown = fits.slice(0, MOST).map(({ one, k }) => saetool.classes.entry(facts, chunk, one, k, 6));
    if (fits.length > MOST) shown.push(h("a.answer", { href: `labels.html#q=${encodeURIComponent(wanted)}` }, `All ${format("count", fits.length)} classes with this name`));
    return shown;
  }

  async function images(facts, wanted) {
    if (wanted.length < 2) return [];
    const rows = (await saetool.catalog.rows()).named(wanted);
    if (!rows.length) return [];
    const names = (await saetool.catalog.rows()).paths;
    const pictures = rows.slice(0, PICTURES).map((row) => h("a.thumb", { href: `image.html#image=${row}`, title: names[row] },
      crops.crop(facts, { image: row, patch: -1, box: null }, { alt: `Image ${row}` }), h("span.clip", { dir: "auto" }, names[row].split("/").pop().slice(-40))));
    const all = h("a", { href: `images.html#q=${encodeURIComponent(wanted)}` }, `${plural(rows.length, "image")} with this name`);
    return [h("section.answer", {}, h("h2", {}, all), h("div.thumbs", {}, ...pictures))];
  }

  function nothing(facts, text) {
    const examples = facts.values.labels.flatMap(({ classes }) => classes ?? []).slice(0, 2).map((name) => `“${name.slice(0, 30)}”`);
    const classes_ = examples.length ? `, a class such as ${examples.join(" or ")}` : "";
    return h("p.muted.answer", { role: "status" }, `Nothing here is called “${text.trim().slice(0, 60)}”. Try a latent's number (0 to ${format("count", facts.values.n_latents - 1)})${classes_}, or part of a file's name.`);
  }

  /** Connect an input and the place for its answers: they follow the typing, Enter follows the first. */
  function connect(input, place) {
    let turn = 0;
    const show = async () => {
      const mine = ++turn, text = input.value;
      if (!text.trim()) {
        place.hidden = true;
        return;
      }
      const found = await answers(text);
      if (mine !== turn) return;
      place.replaceChildren(...found);
      place.hidden = false;
      place.dataset.answers = text;
    };
    input.addEventListener("input", () => show().catch(complain));
    input.form.addEventListener("submit", async (event) => {
      event.preventDefault();
      await show().catch(complain);
      place.querySelector("a")?.click();
    });
    input.addEventListener("keydown", (event) => {
      if (event.key === "Escape") place.hidden = true;
      if (event.key === "ArrowDown") {
        event.preventDefault();
        place.querySelector("a")?.focus();
      }
    });
    place.addEventListener("keydown", (event) => {
      const links = [...place.querySelectorAll("a")], at = links.indexOf(document.activeElement);
      if (event.key === "Escape") {
        input.focus();
        turn++; // the focus asks for the answers again
        place.hidden = true;
      }
      if (event.key !== "ArrowDown" && event.key !== "ArrowUp") return;
      event.preventDefault();
      (event.key === "ArrowDown" ? links[at + 1] ?? links[at] : links[at - 1] ?? input).focus();
    });
    document.addEventListener("pointerdown", (event) => {
      if (!event.target.closest(".search")) place.hidden = true;
    });
    input.addEventListener("focus", () => show().catch(complain));
    addEventListener("hashchange", () => { place.hidden = true; });
  }

  document.addEventListener("DOMContentLoaded", () => {
    const input = document.getElementById("search");
    if (input) connect(input, document.getElementById("answers"));
    addEventListener("keydown", (event) => {
      if (event.key === "/" && input && !event.target.closest("input, select, textarea")) {
        event.preventDefault();
        input.focus();
      }
    });
  });

  return { answers };
})();

/** One class of a label, with the latents that tell it apart best. */
saetool.classes = (() => {
  const { h, format, crops } = saetool;

  function entry(facts, chunk, [label, name, images, share, total], k, most) {
    const { each, max_q: most_q, min_images: least } = chunk.values, found = [];
    for (let i = k * each; i < k * each + Math.min(each, most); i++) {
      const latent = chunk.latent[i];
      if (latent < 0) continue;
      const unseen = chunk.held_out_auroc ? chunk.held_out_auroc[i] : NaN;
      const words = `Latent ${latent}, AUROC ${format("unit", chunk.auroc[i])}${Number.isNaN(unseen) ? "" : `, ${format("unit", unseen)} on held-out images`}`;
      found.push(h("a.class-latent", { href: `latent.html#latent=${latent}`, title: words, "data-latent": latent },
        crops.crop(facts, crops.at(facts, chunk, i), { alt: "" }), h("span", {}, String(latent)), h("span.muted.number", {}, format("unit", Number.isNaN(unseen) ? chunk.auroc[i] : unseen))));
    }
    const listed = `index.html#${new URLSearchParams([["q", `"${name}"`], ["status", "ok,dense"], ["label", label], ["sort", `-${label}.auroc_low`], ["range", `${label}.q_value::${most_q}`], ["range", `image_count:${least}:`]])}`;
    return h("section.answer.class", { "data-class": name.slice(0, 200) },
      h("h2", {}, h("span", { dir: "auto" }, name.slice(0, 200)), h("span.muted", { dir: "auto" }, ` ${label.slice(0, 60)} · ${format("count", images)} images, base rate ${format("share", share)}`)),
      found.length ? h("div.class-latents", {}, ...found) : h("p.muted", {}, "No latent is surely associated with it."),
      total ? h("a", { href: listed }, "Latents whose best class it is, in the table") : null);
  }

  return { entry };
})();

/** All images by name and class, loaded when first asked for. */
saetool.catalog = (() => {
  const { load, json, bit } = saetool;
  let made = null;

  async function make() {
    const chunk = await load("catalog"), paths = json(chunk.paths), lower = paths.map((path) => path.toLowerCase());
    const named = (text) => Array.from(paths.keys()).filter((row) => lower[row].includes(text) || String(row) === text);
    return { paths, lower, labels: chunk.values.labels, codes: (k) => chunk[`class_${k}`], held_out: (row) => bit(chunk.held_out, row), named };
  }

  return { rows: () => (made = made || make()) };
})();
