// The order of a picture's latents, gathered from its patches, and moving over them by keys.
"use strict";

saetool.ranks = (() => {
  // What fires on most images tells little of this one; what a latent adds to the reconstruction is its length times z.
  const SCORES = {
    distinctive: ({ latent, value }, { weights, n }) => value * rarity(weights.image_count[latent], n),
    activation: ({ value }) => value,
    contribution: ({ latent, value }, { weights }) => value * (weights.decoder_norm[latent] || 0),
  };
  const rarity = (count, n) => (count ? Math.log(n / count) : 0);

  /** Return latents {latent, value} in the order named, of n images whose `weights` say how often each latent fires. */
  function rank(latents, name, known) {
    const score = (one) => SCORES[name](one, known);
    return [...latents].sort((a, b) => score(b) - score(a) || a.latent - b.latent);
  }

  /** Gather an image's latents over its patches: largest value and where each fires; `at(patch)` lists one patch's. */
  function gather({ tokens, at }) {
    const latents = new Map();
    for (let patch = 0; patch < tokens; patch++) {
      for (const { latent, value } of at(patch)) {
        const one = latents.get(latent) || { latent, value: 0, patches: [] };
        one.value = Math.max(one.value, value);
        one.patches.push([patch, value]);
        latents.set(latent, one);
      }
    }
    return [...latents.values()];
  }

  /** Return a latent's heat over an image, on the scale of its largest value there. */
  function map({ value, patches }) {
    return {
      positions: patches.map(([patch]) => patch),
      bytes: patches.map(([, here]) => Math.max(1, Math.round((here / value) * 255))),
    };
  }

  /** Let a picture's patches be chosen: a click where the grid lies, arrow keys from the one that `current` gives. */
  function choosing(frame, facts, grid, current, choose) {
    const { heat } = saetool, [rows, columns] = grid;
    if (facts.box) frame.addEventListener("click", (event) => {
      const patch = heat.patchAt(event, frame, facts, grid);
      if (patch >= 0) choose(patch);
    });
    frame.addEventListener("keydown", (event) => {
      const moves = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns };
      if (!(event.key in moves)) return;
      event.preventDefault();
      const next = current() + moves[event.key];
      const wraps = (event.key === "ArrowLeft" && current() % columns === 0) || (event.key === "ArrowRight" && next % columns === 0);
      if (next >= 0 && next < rows * columns && !wraps) choose(next);
    });
    frame.setAttribute("tabindex", "0");
    frame.setAttribute("role", "application");
    frame.setAttribute("aria-label", "Picture: arrow keys choose a patch");
  }

  return { rank, gather, map, choosing };
})();
