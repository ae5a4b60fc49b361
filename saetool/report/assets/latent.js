// The page of one latent, named by the fragment: #latent=12&list=…; its own chunk holds all that it shows.
"use strict";

(() => {
  const { h, load, site, format, crops, list, parameters, item, missing, complain } = saetool;
  const by = (id) => document.getElementById(id);
  let turn = 0; // counts calls of show: an earlier one that is still waiting must not draw over a later one
  let shown = null;

  // The scripts after this one, which draw what lies below the strip.
  const others = new Promise((done) => document.addEventListener("DOMContentLoaded", () => setTimeout(done)));

  /** Return the latent that the fragment names; without one the first that is alive, and write it into the URL. */
  function asked(facts) {
    const named = item("latent", facts.values.n_latents);
    if (named !== null) return named;
    const first = list.around(facts, -1, null).next;
    history.replaceState(null, "", `#latent=${first}`);
    return first;
  }

  async function show() {
    const mine = ++turn, facts = await site.ready, { n_latents: n } = facts.values;
    if (mine !== turn) return;
    const latent = asked(facts);
    if (typeof latent === "string") return absent(facts, `There is no latent ${latent}: they go from 0 to ${n - 1}.`);
    const found = (await saetool.record.of(latent)) ?? (await bare(facts, latent));
    if (mine !== turn) return;
    shown = found;
    missing(null);
    head(facts, found);
    by("no-page").hidden = Boolean(found.part);
    by("found").hidden = by("strip").hidden = !found.part;
    if (found.part) strips(facts, found);
    document.body.dataset.shown = String(latent);
    await Promise.all([others, seen()]); // the strip is on the screen before all else is made, or even loaded
    if (mine !== turn) return;
    saetool.panels.statistics(facts, found);
    if (found.part) fill(facts, found);
    document.body.dataset.ready = String(latent);
    place(facts, latent, mine).catch(complain);
  }

  /** Wait until the pictures of the strip are there, a second at most. */
  function seen() {
    const pictures = [...by("strip-top").querySelectorAll("img")].filter((picture) => !picture.complete);
    const each = pictures.map((picture) => new Promise((done) => Object.assign(picture, { onload: done, onerror: done })));
    return Promise.race([Promise.all(each), new Promise((done) => setTimeout(done, 1000))]);
  }

  /** Return what the table says of a latent that has no page. */
  async function bare(facts, latent) {
    await others;
    const model = new saetool.model.Model(facts, await load("table"), "");
    return { latent, status: model.status(latent), number: (key) => model.number(key, latent), words: "", part: null, neighbors: () => [] };
  }

  /** Say where in its list the latent is, and lead to the ones around it. */
  async function place(facts, latent, mine) {
    const fragment = parameters().get("list") ?? "";
    by("place").replaceChildren();
    for (const id of fragment ? ["previous", "next"] : []) by(id).removeAttribute("href");
    if (fragment) await others;
    const order = await list.order(fragment);
    if (mine !== turn) return;
    const around = list.around(facts, latent, order);
    link(around, order ? fragment : "");
    if (!order) return;
    const words = around.place >= 0 ? `${format("count", around.place + 1)} of ${format("count", around.total)} in this list` : `Not one of the ${format("count", around.total)} in this list`;
    by("place").replaceChildren(h("a", { href: `index.html#${fragment}` }, words));
  }

  function link({ previous, next }, fragment) {
    const hash = (latent) => `#${list.address(latent, fragment).split("#")[1]}`;
    by("previous").href = hash(previous);
    by("next").href = hash(next);
  }

  /** Say that the fragment names no latent; the steps lead to the first and the last. */
  function absent(facts, text) {
    missing(text);
    by("title").textContent = "Latent";
    by("status").className = by("status").textContent = "";
    by("place").replaceChildren();
    link({ previous: list.around(facts, facts.values.n_latents, null).previous, next: list.around(facts, -1, null).next }, "");
    similar(-1);
    document.body.dataset.shown = document.body.dataset.ready = "missing";
  }

  function head(facts, found) {
    document.title = `Latent ${found.latent} · ${by("title").dataset.site}`;
    by("title").textContent = `Latent ${found.latent}`;
    by("status").className = `status ${found.status}`;
    by("status").textContent = found.status;
    by("dead").hidden = found.status !== "dead";
    by("words").textContent = found.words;
    const nearest = found.neighbors("decoder")[0]?.latent ?? -1;
    similar(nearest);
    by("compare").href = `compare.html#latents=${found.latent}${nearest >= 0 ? `,${nearest}` : ""}`;
  }

  /** Link to the most similar latent; −1 is none. */
  function similar(latent) {
    by("similar").hidden = latent < 0;
    if (latent >= 0) by("similar").href = `#latent=${latent}`;
    else by("similar").removeAttribute("href");
  }

  function strips(facts, found) {
    const crop = (example, k) => crops.crop(facts, saetool.record.crop(example), { alt: k ? "" : `Around the peak of latent ${found.latent}`, eager: true });
    for (const [id, group] of [["strip-top", "top"], ["strip-held-out", "held_out"]]) {
      const examples = found.of(group);
      by(id).replaceChildren(...examples.map((one, k) => h("a", { href: `image.html#image=${one.facts.row}&patch=${Math.max(one.patch, 0)}&latent=${found.latent}`, "aria-label": `Image ${one.facts.row}, ${format("value", one.value)}` }, crop(one, k))));
      by(`${id}-title`).hidden = by(id).hidden = !examples.length;
    }
  }

  function fill(facts, found) {
    const { grid } = facts.values, { panels, tiles } = saetool;
    panels.labels(found);
    for (const id of ["top", "random"]) section(id, found.of(id).map((one) => tiles.tile(one, found, grid, found.latent)));
    section("intervals", tiles.intervals(found, grid, facts.values.intervals ?? 0));
    by("heat-bar").hidden = grid === null;
    by("scale-high").textContent = format("value", found.number("max"));
    panels.histogram(found, facts.histogram_edges);
    panels.profile(found, grid);
    for (const id of ["decoder", "coactivation"]) panels.neighbors(facts, id, found);
  }

  /** Fill one section, or hide it where it has nothing. */
  function section(id, children) {
    by(`${id}-section`).hidden = !children.length;
    by(id).replaceChildren(...children);
  }

  /** Say for a moment what a button did. */
  function say(text) {
    by("said").textContent = text;
    by("said").hidden = false;
  }

  function buttons() {
    by("copy").addEventListener("click", async () => {
      const address = location.href.replace(/&list=[^&]*/, "");
      try {
        await navigator.clipboard.writeText(address);
        say("The link is copied.");
      } catch {
        say(address); // no clipboard for this page: the reader can copy it from here
      }
    });
    by("save").addEventListener("click", async () => {
      const saved = await saetool.download.strip([...by("strip-top").querySelectorAll(".crop")], `Latent ${shown.latent}: ${shown.words}`, `latent-${shown.latent}.png`);
      if (saved) return;
      say("This browser does not let a page that is opened from a disk copy its pictures: print the strip into a PDF instead, or serve the report's folder (python -m http.server).");
      document.body.classList.add("print-strip");
      print();
      document.body.classList.remove("print-strip");
    });
    by("json").addEventListener("click", async () => {
      const { values } = await site.ready, { latent, status, words } = shown;
      const numbers = Object.fromEntries(values.columns.map(({ key, form }) => [key, form === "text" ? shown.text?.(key) ?? null : Number.isNaN(shown.number(key)) ? null : shown.number(key)]));
      const examples = (shown.examples ?? []).map(({ group, interval, facts, patch, value, held_out }) => ({ group, interval: interval < 0 ? null : interval, image: facts.row, path: facts.path, patch, value, held_out }));
      saetool.download.json(`latent-${latent}.json`, { latent, status, words, numbers, labels: shown.labels, examples, neighbors: { decoder: plainly("decoder"), coactivation: plainly("coactivation") } });
    });
    by("histogram-svg").addEventListener("click", () => saetool.download.svg(by("histogram").querySelector("svg"), `latent-${shown.latent}-histogram.svg`));
  }

  const plainly = (name) => shown.neighbors(name).map(({ latent, value }) => ({ latent, value }));

  function keys(event) {
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
  }

  show().catch(complain);
  document.addEventListener("DOMContentLoaded", () => {
    const slider = by("opacity"), set = () => document.documentElement.style.setProperty("--heat", slider.value / 100);
    slider.addEventListener("input", set);
    set();
    buttons();
    for (const id of ["previous", "next"]) list.replacing(by(id));
    addEventListener("hashchange", () => {
      if (item("latent", Infinity) === null && location.hash) return; // a link to a part of this page
      by("said").hidden = true;
      scrollTo(0, 0);
      show().catch(complain);
    });
    addEventListener("keydown", keys);
  });
})();
