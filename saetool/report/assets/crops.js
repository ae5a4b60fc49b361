// Crops: 7 × 7 patches around a peak, cut from the thumbnail by the style sheet; what a latent is shows at a glance.
"use strict";

saetool.crops = (() => {
  const { h, load, site } = saetool;
  const PATCHES = 7;

  /** Return the part of the picture around a patch as shares [left, top, right, bottom]; the whole where there is no grid. */
  function window(patch, box, grid) {
    if (!grid || !box || patch < 0) return [0, 0, 1, 1];
    const [rows, columns] = grid, size = Math.min(PATCHES, rows, columns);
    const first = (at, n) => Math.min(Math.max(at - (size >> 1), 0), n - size);
    const top = first(Math.floor(patch / columns), rows), left = first(patch % columns, columns);
    const across = (box[2] - box[0]) / columns, down = (box[3] - box[1]) / rows;
    return [box[0] + left * across, box[1] + top * down, box[0] + (left + size) * across, box[1] + (top + size) * down];
  }

  /** Return one crop {image, patch, box}: a square, as the model saw it. */
  function crop(facts, { image, patch, box }, { alt = "", eager = false } = {}) {
    const source = image < 0 ? null : site.thumbnail(facts, image);
    const frame = h("span.crop", { "data-image": image });
    if (!source) {
      if (image >= 0) frame.append(h("span.no-picture", { role: "img", "aria-label": alt || `Image ${image}` }, "no thumbnail"));
      return frame;
    }
    const [left, top, right, bottom] = window(patch, box, facts.values.grid);
    const whole = right - left >= 1 && bottom - top >= 1;
    const picture = h(whole ? "img.whole" : "img", { src: source, alt, decoding: "async", loading: eager ? null : "lazy" });
    if (!whole) {
      const set = (key, value) => picture.style.setProperty(key, `${value * 100}%`);
      set("width", 1 / (right - left));
      set("height", 1 / (bottom - top));
      set("left", -left / (right - left));
      set("top", -top / (bottom - top));
    }
    frame.append(picture);
    return frame;
  }

  /** Return the i-th crop of a chunk's arrays image, patch and box (names may have a prefix). */
  function at(facts, chunk, i, prefix = "") {
    const box = chunk[`${prefix}box`]?.subarray(4 * i, 4 * i + 4), steps = facts.values.box_steps;
    return { image: chunk[`${prefix}image`][i], patch: chunk[`${prefix}patch`][i], box: box ? Array.from(box, (v) => v / steps) : null };
  }

  /** Return a promise of the crops of a latent's strongest images, for lists. */
  async function glimpse(latent, count = 4) {
    const facts = await site.ready, { glimpses: size, glimpse_images: each } = facts.values.blocks;
    const chunk = await load(`glimpses/${Math.floor(latent / size)}`), found = [];
    for (let i = 0; i < Math.min(count, each); i++) {
      const one = at(facts, chunk, (latent - chunk.values.start) * each + i);
      if (one.image >= 0) found.push(crop(facts, one, { alt: i ? "" : `Strongest image of latent ${latent}` }));
    }
    return found;
  }

  /** Return a place for a latent's crops that fills itself. */
  function stamps(latent, count = 4) {
    const place = h("span.stamps");
    glimpse(latent, count).then((found) => place.replaceChildren(...found)).catch(saetool.complain);
    return place;
  }

  return { window, crop, at, glimpse, stamps };
})();
