// The page of one image, named by the fragment: #image=5&patch=37&latent=12.
"use strict";

(() => {
  const { h, load, site, format, heat, crops, list, ranks, parameters, item, missing, complain } = saetool;
  const by = (id) => document.getElementById(id);
  const MOST = 24;
  const state = { image: -1, patch: 0, latent: -1, picked: false };
  let turn = 0; // counts calls of show: an earlier one that is still waiting must not draw over a later one

  /** Cut one image out of its chunk: for each patch its strongest latents, strongest first. */
  function record(chunk, image) {
    const k = chunk.rows.indexOf(image), { tokens, strongest, steps } = chunk.values;
    const at = (patch) => {
      const rows = [];
      for (let s = 0; s < strongest; s++) {
        const place = (k * tokens + patch) * strongest + s;
        if (chunk.latent[place] === 0) continue;
        rows.push({ latent: chunk.latent[place] - 1, value: (chunk.top[k * tokens + patch] * chunk.share[place]) / steps });
      }
      return rows;
    };
    return { tokens, strongest, at };
  }

  const rank = (latents) => ranks.rank(latents, by("rank").value, state);

  /** Return one line of a list of latents, with its crops; pointing at it lights its patches. */
  function line({ latent, value, note }) {
    const light = () => highlight(latent);
    const shown = state.found && state.facts.box;
    const share = `fires on ${format("share", state.weights.image_count[latent] / state.n)} of images`;
    return h("li", { "data-latent": latent, onpointerenter: light, onfocusin: light },
      h("a.neighbor", { href: list.address(latent, "") }, crops.stamps(latent, 3), h("span", {}, `Latent ${latent}`, h("span.muted.note", {}, [note, share].filter(Boolean).join(" · "))), h("span.number", {}, format("value", value))),
      shown ? h("button.chip", { type: "button", "aria-label": `Show where latent ${latent} fires`, onclick: () => { state.latent = latent; highlight(latent); write(); } }, "show") : null);
  }

  /** Draw one latent's heat over the picture, on the scale of its largest value in this image. */
  function highlight(latent) {
    const { facts, grid, frame, found } = state;
    if (!found || !grid) return;
    const one = state.latents.find((candidate) => candidate.latent === latent);
    frame.querySelector("canvas.heat")?.remove();
    by("shown").textContent = one ? `Heat: latent ${latent}, up to ${format("value", one.value)}` : "Heat: none";
    if (!one || !facts.box) return;
    frame.append(heat.place(heat.canvas(ranks.map(one), grid), facts.box));
  }

  function pick(patch) {
    const { facts, grid, found, cursor } = state;
    state.patch = Math.min(Math.max(patch, 0), found.tokens - 1);
    if (facts.box) heat.place(cursor, heat.patchBox(facts, state.patch, grid));
    const row = Math.floor(state.patch / grid[1]), column = state.patch % grid[1];
    by("patch-name").textContent = `Patch ${state.patch} (row ${row}, column ${column})`;
    const rows = rank(found.at(state.patch));
    by("patch-latents").replaceChildren(...rows.map(line));
    by("patch-none").hidden = rows.length > 0;
    document.body.dataset.patch = String(state.patch);
    return rows;
  }

  /** Choose a patch as the reader does: its latents, and the heat of the first of them. */
  function choose(patch) {
    const rows = pick(patch);
    state.picked = true;
    if (rows.length) {
      state.latent = rows[0].latent;
      highlight(state.latent);
    }
    write();
  }

  function write() {
    const { image, patch, latent } = state;
    history.replaceState(null, "", `#image=${image}&patch=${patch}${latent >= 0 ? `&latent=${latent}` : ""}`);
  }

  function about(facts) {
    const rows = [["File", facts.path], ["Size", facts.width ? `${facts.width} × ${facts.height}` : "–"], ["Training", facts.held_out ? "held out" : "seen"], ...facts.labels.map(([name, value]) => [name, value === null ? "–" : heat.labelText(value)])];
    by("facts").replaceChildren(...rows.map(([name, value]) => h("div", {}, h("dt", { dir: "auto" }, name), h("dd", { dir: "auto" }, value))));
  }

  async function show() {
    const mine = ++turn, site_ = await site.ready, { grid, n_images: n, blocks } = site_.values;
    if (mine !== turn) return;
    const asked = parameters(), image = item("image", n) ?? Math.max(step(site_, -1, 1), 0);
    if (typeof image === "string") {
      absent(site_, `There is no image ${image}: they go from 0 to ${n - 1}.`);
      return;
    }
    const [facts, weights] = await Promise.all([site.image(image), load("weights")]);
    const chunk = facts.page ? await load(`patches/${Math.floor(image / blocks.patches)}`) : null;
    if (mine !== turn) return;
    missing(null);
    const frame = head(site_, facts), found = chunk ? record(chunk, image) : null;
    Object.assign(state, { image, facts, grid, weights, n, frame, found, cursor: h("span.cursor"), picked: false });
    state.latents = found ? ranks.gather(found) : facts.latents.map((one) => ({ ...one, patches: [[one.patch, one.value]] }));
    by("no-page").hidden = facts.page || grid === null;
    by("no-grid").hidden = grid !== null;
    const places = Boolean(found && grid);
    by("heat-bar").hidden = by("hint").hidden = by("patch-section").hidden = !places;
    by("none").hidden = state.latents.length > 0;
    if (places) fill(asked);
    whole();
    document.body.dataset.shown = document.body.dataset.ready = String(image);
  }

  /** List the whole image's latents in the chosen order. */
  function whole() {
    by("image-latents").replaceChildren(...rank(state.latents).slice(0, MOST).map((one) =>
      line({ ...one, note: state.found && state.grid ? `on ${one.patches.length} patch${one.patches.length === 1 ? "" : "es"}` : "" })));
  }

  /** Say that the fragment names no image; the steps lead to the last and the first. */
  function absent(site_, text) {
    missing(text);
    by("title").textContent = "Image";
    by("previous").href = `#image=${step(site_, site_.values.n_images, -1)}`;
    by("next").href = `#image=${step(site_, -1, 1)}`;
    document.body.dataset.shown = document.body.dataset.ready = "missing";
  }

  /** Show what is known of an image without its patches; return the frame of its picture. */
  function head(site_, facts) {
    document.title = `Image ${facts.row} · ${by("title").dataset.site}`;
    by("title").textContent = `Image ${facts.row}`;
    by("previous").href = `#image=${step(site_, facts.row, -1)}`;
    by("next").href = `#image=${step(site_, facts.row, 1)}`;
    about(facts);
    const frame = heat.picture(facts, null, null, { eager: true });
    frame.style.setProperty("--ratio", facts.ratio);
    by("picture").replaceChildren(frame);
    return frame;
  }

  function fill(asked) {
    const { frame, latents } = state;
    if (state.facts.box) frame.append(state.cursor);
    ranks.choosing(frame, state.facts, state.grid, () => state.patch, choose);
    const first = rank(latents)[0];
    const best = first ? first.patches.reduce((a, b) => (b[1] > a[1] ? b : a))[0] : 0;
    pick(/^\d+$/.test(asked.get("patch") ?? "") ? Number(asked.get("patch")) : best);
    const wanted = asked.has("latent") ? Number(asked.get("latent")) : -1;
    state.latent = latents.some(({ latent }) => latent === wanted) ? wanted : -1;
    highlight(state.latent >= 0 ? state.latent : first?.latent);
  }

  function step(site_, image, direction) {
    const n = site_.values.n_images;
    return (((image + direction) % n) + n) % n;
  }

  document.addEventListener("DOMContentLoaded", () => {
    const slider = by("opacity");
    const set = () => document.documentElement.style.setProperty("--heat", slider.value / 100);
    slider.addEventListener("input", set);
    set();
    by("rank").addEventListener("change", () => {
      if (state.found && state.grid) pick(state.patch);
      whole();
    });
    for (const id of ["previous", "next"]) list.replacing(by(id));
    show().catch(complain);
    addEventListener("hashchange", () => {
      if (item("image", Infinity) === null && location.hash) return; // a link to a part of this page
      show().catch(complain);
    });
  });
})();
