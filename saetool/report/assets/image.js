// The page of one image, named by the fragment: #image=5&patch=37&latent=12.
"use strict";

(() => {
  const { h, load, site, format, heat, parameters, item, missing, complain, bit } = saetool;
  const by = (id) => document.getElementById(id);
  const MOST = 24;
  const state = { image: -1, patch: 0, latent: -1 };
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

  /** Gather the image's latents over its patches: largest value and the patches where it is among the strongest. */
  function gather(found) {
    const latents = new Map();
    for (let patch = 0; patch < found.tokens; patch++) {
      for (const { latent, value } of found.at(patch)) {
        const one = latents.get(latent) || { latent, max: 0, patches: [] };
        one.max = Math.max(one.max, value);
        one.patches.push([patch, value]);
        latents.set(latent, one);
      }
    }
    return [...latents.values()].sort((a, b) => b.max - a.max || a.latent - b.latent);
  }

  /** Return one line of a list of latents, with its pictures; pointing at it lights its patches. */
  function line({ latent, value, note }) {
    const stamps = h("div.stamps");
    heat.glimpse(latent, 3).then((found) => stamps.replaceChildren(...found)).catch(complain);
    const light = () => highlight(latent);
    return h("li", { "data-latent": latent, onpointerenter: light, onfocusin: light },
      h("a.neighbor", { href: `latent.html#latent=${latent}` }, stamps, h("span", {}, `Latent ${latent}`, note ? h("span.muted.note", {}, note) : null), h("span.number", {}, format("value", value))),
      h("button.chip", { type: "button", "aria-label": `Show where latent ${latent} fires`, onclick: () => { state.latent = latent; highlight(latent); write(); } }, "show"));
  }

  /** Draw one latent's heat over the picture, on the scale of its largest value in this image. */
  function highlight(latent) {
    const one = state.latents.find((candidate) => candidate.latent === latent);
    const { facts, grid, frame } = state;
    frame.querySelector("canvas.heat")?.remove();
    by("shown").textContent = one ? `Heat: latent ${latent}, up to ${format("value", one.max)}` : "Heat: none";
    if (!one || !facts.box) return;
    const positions = one.patches.map(([patch]) => patch);
    const bytes = one.patches.map(([, value]) => Math.max(1, Math.round((value / one.max) * 255)));
    frame.append(heat.place(heat.canvas({ positions, bytes }, grid), facts.box));
  }

  function pick(patch) {
    const { facts, grid, found, cursor } = state;
    state.patch = Math.min(Math.max(patch, 0), found.tokens - 1);
    if (facts.box) heat.place(cursor, heat.patchBox(facts, state.patch, grid));
    const row = Math.floor(state.patch / grid[1]), column = state.patch % grid[1];
    by("patch-name").textContent = `Patch ${state.patch} (row ${row}, column ${column})`;
    const rows = found.at(state.patch);
    by("patch-latents").replaceChildren(...rows.map(line));
    by("patch-none").hidden = rows.length > 0;
    document.body.dataset.patch = String(state.patch);
  }

  function write() {
    const { image, patch, latent } = state;
    history.replaceState(null, "", `#image=${image}&patch=${patch}${latent >= 0 ? `&latent=${latent}` : ""}`);
  }

  function listen(frame) {
    if (state.facts.box) frame.addEventListener("click", (event) => {
      const patch = heat.patchAt(event, frame, state.facts, state.grid);
      if (patch >= 0) {
        pick(patch);
        write();
      }
    });
    frame.addEventListener("keydown", (event) => {
      const columns = state.grid[1];
      const moves = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns };
      if (!(event.key in moves)) return;
      event.preventDefault();
      const next = state.patch + moves[event.key];
      const wraps = (event.key === "ArrowLeft" && state.patch % columns === 0) || (event.key === "ArrowRight" && next % columns === 0);
      if (next >= 0 && next < state.found.tokens && !wraps) pick(next);
      write();
    });
  }

  function about(facts) {
    const rows = [["File", facts.path], ["Size", `${facts.width} × ${facts.height}`], ...facts.labels.map(([name, value]) => [name, value === null ? "–" : heat.labelText(value)])];
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
    const facts = await site.image(image);
    const chunk = facts.page ? await load(`patches/${Math.floor(image / blocks.patches)}`) : null;
    if (mine !== turn) return;
    missing(null);
    const frame = head(site_, facts);
    by("no-grid").hidden = grid !== null;
    by("no-page").hidden = facts.page || grid === null;
    by("heat-bar").hidden = by("hint").hidden = by("found").hidden = !facts.page;
    if (chunk) {
      const found = record(chunk, image);
      Object.assign(state, { image, facts, grid, found, frame, latents: gather(found), cursor: h("span.cursor") });
      fill(asked);
    }
    document.body.dataset.ready = String(image);
  }

  /** Say that the fragment names no image; the steps lead to the last and the first. */
  function absent(site_, text) {
    missing(text);
    by("title").textContent = "Image";
    by("previous").href = `#image=${step(site_, site_.values.n_images, -1)}`;
    by("next").href = `#image=${step(site_, -1, 1)}`;
    document.body.dataset.ready = "missing";
  }

  /** Show what is known of an image without its patches; return the frame of its picture. */
  function head(site_, facts) {
    document.title = `Image ${facts.row} · ${by("title").dataset.site}`;
    by("title").textContent = `Image ${facts.row}`;
    by("previous").href = `#image=${step(site_, facts.row, -1)}`;
    by("next").href = `#image=${step(site_, facts.row, 1)}`;
    about(facts);
    const frame = heat.picture(facts, null, null, { eager: true });
    frame.style.setProperty("--ratio", facts.width / facts.height);
    by("picture").replaceChildren(frame);
    return frame;
  }

  function fill(asked) {
    const { frame, latents } = state;
    if (state.facts.box) frame.append(state.cursor);
    frame.setAttribute("tabindex", "0");
    frame.setAttribute("role", "application");
    frame.setAttribute("aria-label", "Picture: arrow keys choose a patch");
    listen(frame);
    by("image-latents").replaceChildren(...latents.slice(0, MOST).map(({ latent, max, patches }) =>
      line({ latent, value: max, note: ` on ${patches.length} patch${patches.length === 1 ? "" : "es"}` })));
    const best = latents.length ? latents[0].patches.reduce((a, b) => (b[1] > a[1] ? b : a))[0] : 0;
    pick(asked.has("patch") ? Number(asked.get("patch")) || 0 : best);
    const wanted = asked.has("latent") ? Number(asked.get("latent")) : -1;
    state.latent = latents.some(({ latent }) => latent === wanted) ? wanted : -1;
    highlight(state.latent >= 0 ? state.latent : latents[0]?.latent);
  }

  function step(site_, image, direction) {
    const n = site_.values.n_images, paged = site_.image_page.some((byte) => byte > 0);
    for (let k = 1; k <= n; k++) {
      const next = (((image + direction * k) % n) + n) % n;
      if (!paged || bit(site_.image_page, next)) return next;
    }
    return image;
  }

  document.addEventListener("DOMContentLoaded", () => {
    const slider = by("opacity");
    const set = () => document.documentElement.style.setProperty("--heat", slider.value / 100);
    slider.addEventListener("input", set);
    set();
    show().catch(complain);
    addEventListener("hashchange", () => {
      if (item("image", Infinity) === null && location.hash) return; // a link to a part of this page
      show().catch(complain);
    });
  });
})();
