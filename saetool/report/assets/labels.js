// Every class of every label with the latents that tell it apart best.
"use strict";

(() => {
  const { load, site, json, format, parameters, complain } = saetool;
  const by = (id) => document.getElementById(id);
  const MOST = 200; // entries drawn at a time: a search narrows them

  async function show() {
    const facts = await site.ready, chunk = await load("labels"), text = by("find").value.trim().toLowerCase();
    chunk.list = chunk.list || (chunk.classes ? json(chunk.classes) : []);
    const fits = chunk.list.map((one, k) => ({ one, k })).filter(({ one: [label, name] }) => !text || name.toLowerCase().includes(text) || label.toLowerCase().includes(text));
    by("count").textContent = `${format("count", fits.length)} of ${format("count", chunk.list.length)} classes`;
    by("empty").hidden = fits.length > 0;
    if (!chunk.list.length) by("empty").textContent = "These images have no labels.";
    by("classes").replaceChildren(...fits.slice(0, MOST).map(({ one, k }) => saetool.classes.entry(facts, chunk, one, k, 8)));
  }

  document.addEventListener("DOMContentLoaded", () => {
    by("find").value = parameters().get("q") ?? "";
    by("find").addEventListener("input", () => show().catch(complain));
    show().then(() => { document.body.dataset.ready = "true"; }).catch(complain);
  });
})();
