// Whole pictures with a latent's heat over them, and what the pointer is on.
"use strict";

saetool.tiles = (() => {
  const { h, format, heat } = saetool;

  /** Return a tile: the picture with its heat map, what the pointer is on, and what it is. */
  function tile(example, found, grid, latent) {
    const { facts } = example;
    const frame = heat.picture(facts, example.map, grid);
    const readout = h("span.number", {}, format("value", example.value));
    if (grid && facts.box && example.patch >= 0) {
      frame.append(heat.place(h("span.peak"), heat.patchBox(facts, example.patch, grid)));
      frame.addEventListener("pointermove", (event) => {
        const patch = heat.patchAt(event, frame, facts, grid);
        const value = patch < 0 ? null : patch === example.patch ? example.value : (heat.byteAt(example.map, patch) / 255) * found.scale;
        readout.textContent = patch < 0 ? "outside" : `${format("value", value)} at ${Math.floor(patch / grid[1])}, ${patch % grid[1]}`;
      });
      frame.addEventListener("pointerleave", () => { readout.textContent = format("value", example.value); });
    }
    const words = facts.labels.filter(([, value]) => value !== null).map(([, value]) => heat.labelText(value)).join(" · ");
    const target = `image.html#image=${facts.row}&patch=${Math.max(example.patch, 0)}&latent=${latent}`;
    const held = example.held_out ? h("span.badge", {}, "held out") : null;
    return h("figure.tile", { style: { "--ratio": facts.ratio }, "data-image": facts.row },
      h("a", { href: target, title: facts.path }, frame),
      h("figcaption", {}, h("span.line", {}, readout, held), h("span.clip.muted", { dir: "auto", title: words.slice(0, 300) }, words || facts.path)));
  }

  /** Return intervals of strength from the highest to the lowest, each with its bounds. */
  function intervals(found, grid, count) {
    const blocks = [], examples = found.of("interval");
    for (let k = count - 1; k >= 0 && examples.length; k--) {
      const members = examples.filter(({ interval }) => interval === k);
      if (!members.length) continue;
      const bound = (share) => format("value", (found.scale * share) / count);
      blocks.push(h("div.interval-row", {}, h("h3", {}, `${bound(k)} to ${bound(k + 1)}`), h("div.tiles.small", {}, ...members.map((one) => tile(one, found, grid, found.latent)))));
    }
    return blocks;
  }

  return { tile, intervals };
})();
