// A picture of the reader's: what fires on it, patch by patch, and what the model says with latents switched off.
"use strict";

(() => {
  const { h, load, site, format, heat, crops, list, ranks, complain } = saetool;
  const by = (id) => document.getElementById(id);
  const MOST = 24;
  const state = { patch: 0, latent: -1, changes: new Map() };
  let looking = false; // whether a new picture is on its way
  let missed = false; // whether a change had to wait for it
  let turn = 0; // counts what was asked: an older answer must not be drawn over a newer one

  async function ask(address, body) {
    const reply = await fetch(address, { method: "POST", body }).catch(() => {
      throw new Error("The server does not answer: is saetool serve still running? If the picture's file has changed, choose it again.");
    });
    const found = await reply.json().catch(() => ({ error: `the server answered ${reply.status}` }));
    if (!reply.ok) throw new Error(found.error);
    return found;
  }

  const say = (text) => { by("state").textContent = text; };

  function fail(error) {
    say("");
    by("problem").textContent = String(error.message || error);
    by("problem").hidden = false;
    by("problem").scrollIntoView({ block: "nearest" });
    document.body.dataset.state = "failed";
  }

  /** Send a picture to the model and show what it finds. */
  const take = (file) => look(file.name || "the picture", `api/pictures?name=${encodeURIComponent(file.name || "")}`, file);

  async function look(name, address, body) {
    const mine = ++turn;
    [looking, missed] = [true, false];
    clearTimeout(state.waiting);
    by("problem").hidden = true;
    document.body.dataset.state = "asking";
    say(`Looking at ${name} …`);
    try {
      const [found, site_, weights] = await Promise.all([ask(address, body), site.ready, load("weights")]);
      if (mine !== turn) return;
      looking = false;
      show(found, site_.values.n_images, weights);
    } catch (error) {
      if (mine !== turn) return;
      looking = false;
      fail(error);
      if (missed) changed(true); // the picture before stays, and what was changed of it meanwhile counts
    }
  }

  /** Return what fires on each patch, from run-length coded lists. */
  function record({ counts, latents, values }) {
    const starts = saetool.offsets(counts);
    const at = (patch) => latents.slice(starts[patch], starts[patch + 1]).map((latent, i) => ({ latent, value: values[starts[patch] + i] }));
    return { tokens: counts.length, at };
  }

  function show(found, n, weights) {
    const fired = record(found), { grid, box } = found;
    Object.assign(state, { found, fired, grid, weights, n, facts: { box }, changes: new Map(), latents: ranks.gather(fired) });
    say("");
    by("item").hidden = false;
    const frame = h("div.picture", { style: { "aspect-ratio": found.width / found.height } }, h("img", { src: found.shown, alt: found.name, width: found.width, height: found.height }));
    frame.style.setProperty("--ratio", found.width / found.height);
    by("picture").replaceChildren(frame);
    Object.assign(state, { frame, cursor: h("span.cursor") });
    const facts = [["File", found.name], ["Size", `${found.width} × ${found.height}`], ["Latents that fire", `${found.counts.includes(found.most) ? "at least " : ""}${format("count", state.latents.length)}`], ["Unexplained (FVU) here", format("unit", found.unexplained)], ["On held-out images", format("unit", usual)]];
    by("facts").replaceChildren(...facts.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", { dir: "auto" }, value))));
    by("far").hidden = !(usual !== null && found.unexplained > 2 * usual);
    for (const id of ["hint", "patch-section"]) by(id).hidden = grid === null;
    by("none").hidden = state.latents.length > 0;
    if (grid) {
      frame.append(state.cursor);
      ranks.choosing(frame, state.facts, grid, () => state.patch, choose);
      const first = rank(state.latents)[0];
      pick(first ? first.patches.reduce((a, b) => (b[1] > a[1] ? b : a))[0] : 0);
      highlight(first?.latent);
    }
    whole();
    controls();
    answer(found.answer);
    document.body.dataset.state = "shown";
  }

  const rank = (latents) => ranks.rank(latents, by("rank").value, state);
  const usual = document.body.dataset.unexplained ? Number(document.body.dataset.unexplained) : null;
  const fixed = document.body.dataset.fixed === "true"; // a mean of patches cannot be put back into the model

  function line({ latent, value, note }) {
    const light = () => highlight(latent);
    const share = `fires on ${format("share", state.weights.image_count[latent] / state.n)} of images`;
    const off = state.changes.get(latent) === 0;
    return h("li", { "data-latent": latent, onpointerenter: light, onfocusin: light },
      h("a.neighbor", { href: list.address(latent, ""), target: "_blank", rel: "noopener" }, crops.stamps(latent, 3), h("span", {}, `Latent ${latent}`, h("span.muted.note", {}, [note, share].filter(Boolean).join(" · "))), h("span.number", {}, format("value", value))),
      fixed ? null : h(off ? "button.chip.on" : "button.chip", { type: "button", "aria-pressed": String(off), "aria-label": `Switch latent ${latent} off`, onclick: () => toggle(latent) }, "off"));
  }

  function highlight(latent) {
    const { frame, grid, facts } = state;
    if (!grid) return;
    const one = state.latents.find((candidate) => candidate.latent === latent);
    frame.querySelector("canvas.heat")?.remove();
    by("shown").textContent = one ? `Heat: latent ${latent}, up to ${format("value", one.value)}` : "Heat: none";
    if (one) frame.append(heat.place(heat.canvas(ranks.map(one), grid), facts.box));
  }

  function pick(patch) {
    state.patch = patch;
    heat.place(state.cursor, heat.patchBox(state.facts, patch, state.grid));
    by("patch-name").textContent = `Patch ${patch} (row ${Math.floor(patch / state.grid[1])}, column ${patch % state.grid[1]})`;
    const rows = rank(state.fired.at(patch));
    by("patch-latents").replaceChildren(...rows.slice(0, MOST).map(line));
    by("patch-none").hidden = rows.length > 0;
    return rows;
  }

  function choose(patch) {
    const rows = pick(patch);
    if (rows.length) highlight(rows[0].latent);
    if (by("here").checked && state.changes.size) changed();
  }

  function whole() {
    by("image-latents").replaceChildren(...rank(state.latents).slice(0, MOST).map((one) =>
      line({ ...one, note: state.grid ? `on ${one.patches.length} patch${one.patches.length === 1 ? "" : "es"}` : "" })));
  }

  /** Draw the lists anew, with the focus where it was. */
  function lists() {
    const at = document.activeElement?.closest("li[data-latent]"), parent = at?.parentElement.id;
    if (state.grid) pick(state.patch);
    whole();
    if (at) by(parent)?.querySelector(`li[data-latent="${at.dataset.latent}"] button`)?.focus();
  }

  function toggle(latent) {
    if (state.changes.get(latent) === 0) state.changes.delete(latent);
    else state.changes.set(latent, 0);
    lists();
    controls();
    changed();
  }

  /** Undo changes from a button that goes with them: the focus goes to the next one, or to the lists. */
  function back(undo) {
    undo();
    lists();
    controls();
    changed();
    (by("changes").querySelector("button") || by("rank")).focus();
  }

  /** Draw one slider for each latent that is changed: how many times its value counts. */
  function controls() {
    by("changes").replaceChildren(...[...state.changes].map(([latent, factor]) => {
      const words = h("span.number", {}, times(factor));
      const slide = (event) => {
        const now = Number(event.target.value), switched = (now === 0) !== (state.changes.get(latent) === 0);
        state.changes.set(latent, now);
        words.textContent = times(now);
        if (switched) lists();
        changed();
      };
      return h("li", { "data-changed": latent }, h("label.field", {}, `Latent ${latent}`, h("input", { type: "range", min: 0, max: 4, step: 0.25, value: factor, oninput: slide }), words),
        h("button.chip", { type: "button", "aria-label": `Latent ${latent} back as it was`, onclick: () => back(() => state.changes.delete(latent)) }, "back"));
    }));
    by("scope").hidden = state.changes.size === 0;
    by("here").parentElement.hidden = state.grid === null;
  }

  const active = () => [...state.changes].filter(([, factor]) => factor !== 1);

  /** Return a difference of shares in points, without a sign where it rounds to nothing. */
  function points(difference) {
    const size = (100 * Math.abs(difference)).toFixed(1);
    return `${size === "0.0" ? "" : difference > 0 ? "+" : "−"}${size} points`;
  }

  const times = (factor) => (factor === 0 ? "off" : `× ${factor}`);

  /** Ask the model anew, once the reader's hand rests; `failed`: what went wrong before stays to be read. */
  function changed(failed = false) {
    if (looking) { // a new picture begins without changes
      missed = true;
      return;
    }
    const mine = ++turn;
    document.body.dataset.state = "asking";
    clearTimeout(state.waiting);
    state.waiting = setTimeout(async () => {
      const patches = by("here").checked && state.grid ? [state.patch] : null;
      try {
        const found = active().length
          ? await ask("api/answers", JSON.stringify({ picture: state.found.picture, changes: Object.fromEntries(active()), patches }))
          : state.found.answer;
        if (mine !== turn) return;
        if (!failed) by("problem").hidden = true;
        answer(found);
        document.body.dataset.state = "shown";
      } catch (error) {
        if (mine === turn) fail(error);
      }
    }, 120);
  }

  function answer({ classes, cosine, matched }) {
    const one = active().length;
    by("changed").textContent = one
      ? `The final embedding keeps a cosine of ${cosine.after.toFixed(4)} to what it was; with ${matched.length} other latent${matched.length === 1 ? "" : "s"} of nearest strength here changed as much (${matched.slice(0, 8).join(", ")}${matched.length > 8 ? ", …" : ""}), of ${cosine.others.toFixed(4)}.`
      : fixed ? "This model's latents are of means over patches, which cannot be put back: none can be switched off." : "Switch a latent off to see what changes.";
    const moved = (before, after) => h("td", {}, format("share", after), before === after ? null : h("span.muted.note", {}, points(after - before)));
    by("classes").replaceChildren(...classes.map(({ name, before, after, others }) =>
      h("tr", { "data-class": name }, h("th", { scope: "row", dir: "auto" }, name), h("td", {}, format("share", before)), one ? moved(before, after) : h("td"), one ? moved(before, others) : h("td"))));
    by("classes").parentElement.hidden = classes.length === 0;
  }

  document.addEventListener("DOMContentLoaded", () => {
    const first = (files) => { if (files && files.length) take(files[0]); };
    by("file").addEventListener("change", (event) => { first(event.target.files); event.target.value = ""; });
    by("own")?.addEventListener("submit", (event) => {
      event.preventDefault();
      look(`image ${by("row").value}`, "api/images", by("row").value);
    });
    addEventListener("dragover", (event) => event.preventDefault());
    addEventListener("drop", (event) => { event.preventDefault(); first(event.dataTransfer.files); });
    addEventListener("paste", (event) => first(event.clipboardData.files));
    const slider = by("opacity"), set = () => document.documentElement.style.setProperty("--heat", slider.value / 100);
    slider.addEventListener("input", set);
    set();
    by("rank").addEventListener("change", () => { if (state.found) lists(); });
    by("here").addEventListener("change", () => changed());
    by("reset").addEventListener("click", () => back(() => state.changes.clear()));
    site.ready.then(() => { document.body.dataset.ready = "true"; }).catch(complain);
  });
})();
