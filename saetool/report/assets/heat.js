// Pictures with heat maps: one canvas cell a patch, laid over the part of the picture that the model saw.
"use strict";

saetool.heat = (() => {
  const { h, format } = saetool;

  // Plasma's upper part: dark to bright on gray photographs, told apart by most color-blind readers.
  const STOPS = [[126, 3, 168], [186, 50, 134], [225, 100, 98], [248, 149, 64], [240, 249, 33]];

  /** Return the color of a share in 0..1. */
  function color(share) {
    const place = Math.min(Math.max(share, 0), 1) * (STOPS.length - 1);
    const i = Math.min(Math.floor(place), STOPS.length - 2);
    return STOPS[i].map((low, c) => Math.round(low + (STOPS[i + 1][c] - low) * (place - i)));
  }

  const LOOKUP = Array.from({ length: 256 }, (_, byte) => {
    const share = byte / 255;
    return byte === 0 ? [0, 0, 0, 0] : [...color(share), Math.round(255 * (0.45 + 0.55 * share))];
  });

  /** Draw a map {positions, bytes} of rows × columns patches, one pixel a patch; zero is transparent. */
  function canvas(map, [rows, columns]) {
    const element = h("canvas.heat", { width: columns, height: rows, "aria-hidden": "true" });
    const context = element.getContext("2d");
    const pixels = context.createImageData(columns, rows);
    for (let i = 0; i < map.positions.length; i++) pixels.data.set(LOOKUP[map.bytes[i]], 4 * map.positions[i]);
    context.putImageData(pixels, 0, 0);
    return element;
  }

  /** Return the maps of a chunk: `at(i)` is the i-th as {positions, bytes}. */
  function maps(chunk, prefix = "heat") {
    const starts = saetool.offsets(chunk[`${prefix}_counts`]);
    return (i) => ({
      positions: chunk[`${prefix}_positions`].subarray(starts[i], starts[i + 1]),
      bytes: chunk[`${prefix}_bytes`].subarray(starts[i], starts[i + 1]),
    });
  }

  const byteAt = (map, patch) => {
    const i = map.positions.indexOf(patch);
    return i < 0 ? 0 : map.bytes[i];
  };

  /** Place an element over a box given in shares of the picture. */
  function place(element, [left, top, right, bottom]) {
    const set = (key, value) => element.style.setProperty(key, `${value * 100}%`);
    set("left", left);
    set("top", top);
    set("width", right - left);
    set("height", bottom - top);
    return element;
  }

  /** Return the box of one patch, as shares of the picture. */
  function patchBox(facts, patch, [rows, columns]) {
    const [left, top, right, bottom] = facts.box;
    const across = (right - left) / columns, down = (bottom - top) / rows;
    const row = Math.floor(patch / columns), column = patch % columns;
    return [left + column * across, top + row * down, left + (column + 1) * across, top + (row + 1) * down];
  }

  /** Return the patch below a pointer event on a picture, or −1. */
  function patchAt(event, element, facts, [rows, columns]) {
    const bounds = element.getBoundingClientRect();
    const x = (event.clientX - bounds.left) / bounds.width, y = (event.clientY - bounds.top) / bounds.height;
    const [left, top, right, bottom] = facts.box;
    const column = Math.floor(((x - left) / (right - left)) * columns);
    const row = Math.floor(((y - top) / (bottom - top)) * rows);
    return column >= 0 && column < columns && row >= 0 && row < rows ? row * columns + column : -1;
  }

  /** Say in words what a picture is, for those who do not see it. */
  function describe(facts) {
    const labels = facts.labels.filter(([, value]) => value !== null).map(([name, value]) => `${name}: ${labelText(value)}`);
    return [`Image ${facts.row}`, ...labels].join(", ").slice(0, 300);
  }

  const labelText = (value) => (typeof value === "number" ? format("value", value) : String(value));

  /** Return a picture with its heat map over it; `grid` null draws none. */
  function picture(facts, map, grid, { alt = describe(facts), eager = false } = {}) {
    const frame = h("div.picture", { style: { "aspect-ratio": facts.ratio } });
    if (facts.thumbnail) {
      const size = { width: facts.width, height: facts.height };
      frame.append(h("img", { src: facts.thumbnail, alt, decoding: "async", loading: eager ? null : "lazy", ...size }));
    } else {
      frame.append(h("div.no-picture", { role: "img", "aria-label": alt }, "no thumbnail in this report"));
    }
    if (map && grid && facts.box) frame.append(place(canvas(map, grid), facts.box));
    return frame;
  }

  return { canvas, maps, byteAt, place, patchBox, patchAt, picture, color, describe, labelText };
})();
