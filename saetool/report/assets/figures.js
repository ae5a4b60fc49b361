// Models that are not sparse: rows as pictures (or strips of numbers), and the spectrum.
"use strict";

saetool.figures = (() => {
  const { h, load, charts, format } = saetool;

  /** Draw one row of bytes as a picture of `height` × `width`, gray or in color; 0.5 is zero where it is signed. */
  function canvas(bytes, [channels, height, width], label) {
    const element = h("canvas.row-picture", { width, height, role: "img", "aria-label": label });
    const context = element.getContext("2d"), pixels = context.createImageData(width, height);
    for (let i = 0; i < width * height; i++) {
      for (let c = 0; c < 3; c++) pixels.data[4 * i + c] = bytes[i * channels + (channels === 3 ? c : 0)];
      pixels.data[4 * i + 3] = 255;
    }
    context.putImageData(pixels, 0, 0);
    return element;
  }

  /** Return one kind of rows as a figure: pictures side by side, or one strip a row. */
  function rows(kind, bytes, shape) {
    const size = bytes.length / kind.rows;
    const pictures = Array.from({ length: kind.rows }, (_, i) =>
      canvas(bytes.subarray(i * size, (i + 1) * size), shape ?? [1, 1, size], `${kind.title} ${i + 1}`));
    return h("figure.rows", {}, h("figcaption", {}, kind.title, h("span.muted", {}, kind.signed ? " · gray is zero" : "")),
      h(shape ? "div.row-pictures" : "div.strips", {}, ...pictures));
  }

  /** Return the spectrum as a line on a logarithmic scale. */
  function spectrum(values) {
    const positive = Array.from(values).filter((value) => value > 0);
    if (positive.length < 2) return null;
    const logs = positive.map(Math.log10);
    const area = charts.axes({ width: 380, height: 190, x: [1, logs.length], y: [Math.min(...logs), Math.max(...logs)], yText: (v) => format("value", 10 ** v), label: "Singular values, descending" });
    const points = logs.map((y, i) => `${area.x(i + 1).toFixed(1)},${area.y(y).toFixed(1)}`).join(" ");
    area.svg.append(saetool.s("polyline.line.series-0", { points }));
    return h("figure.curve", {}, h("figcaption", {}, "Spectrum ", h("span.muted", {}, "· singular values, largest first")), area.svg);
  }

  async function show(root) {
    const chunk = await load("figures"), { kinds, shape } = chunk.values;
    const line = chunk.spectrum ? spectrum(chunk.spectrum) : null;
    root.replaceChildren(...kinds.map((kind) => rows(kind, chunk[kind.name], shape)), ...(line ? [line] : []));
  }

  return { show };
})();
