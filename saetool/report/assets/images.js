// All images: searched by file name, filtered by class and by whether training saw them; sixty at a time.
"use strict";

(() => {
  const { h, site, format, crops, catalog, parameters, complain } = saetool;
  const by = (id) => document.getElementById(id);
  const STEP = 60;
  let rows = [], count = STEP;

  /** Keep the rows that fit what is typed and chosen, and write that into the address. */
  async function filter() {
    const all = await catalog.rows(), text = by("find").value.trim().toLowerCase(), held = by("held-out").value;
    const wanted = all.labels.map((_, k) => by("filters").querySelector(`[data-label="${k}"]`)?.value ?? "");
    const found = text ? all.named(text) : Array.from(all.paths.keys());
    rows = found.filter((row) => (held === "" || (held === "1") === all.held_out(row)) && wanted.every((code, k) => code === "" || all.codes(k)[row] === Number(code)));
    count = STEP;
    const kept = new URLSearchParams();
    if (text) kept.set("q", by("find").value.trim());
    if (held) kept.set("held", held);
    wanted.forEach((code, k) => { if (code !== "") kept.append("class", `${all.labels[k].name}:${code}`); });
    history.replaceState(history.state, "", String(kept) ? `#${kept}` : location.pathname);
    await draw();
  }

  async function draw() {
    const facts = await site.ready, all = await catalog.rows();
    by("count").textContent = `${format("count", rows.length)} of ${format("count", all.paths.length)} images`;
    by("empty").hidden = rows.length > 0;
    by("more").hidden = rows.length <= count;
    by("cards").replaceChildren(...rows.slice(0, count).map((row) => h("a.thumb", { href: `image.html#image=${row}`, "data-image": row },
      crops.crop(facts, { image: row, patch: -1, box: null }, { alt: `Image ${row}` }),
      h("span.clip", { dir: "auto" }, all.paths[row].split("/").pop().slice(-40)), h("span.clip.muted.note", { dir: "auto" }, words(all, row)))));
  }

  const words = (all, row) => all.labels.map(({ classes }, k) => classes[all.codes(k)[row]]).filter((name) => name !== undefined).map((name) => name.slice(0, 60)).join(" · ");

  /** Put what the address says into the inputs. */
  async function read() {
    const all = await catalog.rows(), found = parameters();
    by("find").value = found.get("q") ?? "";
    by("held-out").value = ["0", "1"].includes(found.get("held")) ? found.get("held") : "";
    by("filters").replaceChildren(...all.labels.map(({ name, classes }, k) => {
      const chosen = found.getAll("class").find((text) => text.startsWith(`${name}:`))?.slice(name.length + 1) ?? "";
      const options = classes.map((one, code) => h("option", { value: code, selected: String(code) === chosen }, one.slice(0, 60)));
      return h("label.field", {}, h("span.clip", { dir: "auto" }, name.slice(0, 40)), h("select", { "data-label": k, onchange: () => filter().catch(complain) }, h("option", { value: "" }, "any"), ...options));
    }));
    await filter();
  }

  document.addEventListener("DOMContentLoaded", () => {
    by("find").addEventListener("input", () => filter().catch(complain));
    by("held-out").addEventListener("change", () => filter().catch(complain));
    by("more").addEventListener("click", () => {
      count += STEP;
      draw().catch(complain);
    });
    read().then(() => { document.body.dataset.ready = "true"; }).catch(complain);
  });
})();
