// What one sees, as a file: tables as CSV, figures as SVG or PNG, a latent as JSON, a strip of crops as PNG.
"use strict";

saetool.download = (() => {
  const { h } = saetool;

  function save(name, content, type) {
    const address = URL.createObjectURL(content instanceof Blob ? content : new Blob([content], { type }));
    h("a", { href: address, download: name }).click();
    setTimeout(() => URL.revokeObjectURL(address), 10_000);
  }

  /** Return a cell as CSV: quoted where needed; text that a spreadsheet would take for a formula gets an apostrophe. */
  function cell(value) {
    if (value === null || value === undefined || Number.isNaN(value)) return "";
    if (typeof value === "number") return String(value);
    const text = /^[=+\-@\t\r]/.test(value) ? `'${value}` : String(value);
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  }

  /** Save the rows that pass the filters, in their order, with every column. */
  function csv(model) {
    const head = ["latent", "status", ...model.columns.map(({ key }) => key)];
    const lines = [head.map(cell).join(",")];
    for (const i of model.order) {
      const cells = model.columns.map(({ key, form }) => (form === "text" ? model.text(key, i) : Number.isFinite(model.number(key, i)) ? +model.number(key, i).toPrecision(8) : null));
      lines.push([i, model.status(i), ...cells].map(cell).join(","));
    }
    save("latents.csv", `${lines.join("\r\n")}\r\n`, "text/csv");
  }

  const json = (name, value) => save(name, `${JSON.stringify(value, null, 1)}\n`, "application/json");

  const STYLES = ["fill", "stroke", "stroke-width", "stroke-dasharray", "stroke-linejoin", "opacity", "font", "text-anchor", "visibility"];

  /** Save an SVG figure with the styles that the page gives it. */
  function svg(figure, name) {
    const copy = figure.cloneNode(true), from = figure.querySelectorAll("*"), to = copy.querySelectorAll("*");
    from.forEach((element, k) => {
      const style = getComputedStyle(element);
      for (const key of STYLES) to[k].setAttribute(key, style.getPropertyValue(key));
    });
    save(name, new XMLSerializer().serializeToString(copy), "image/svg+xml");
  }

  const png = (canvas, name) => new Promise((done, failed) => canvas.toBlob((blob) => {
    if (!blob) return failed(new Error("The picture is empty."));
    save(name, blob);
    return done();
  }));

  /** Save crops side by side with a caption; false where the browser forbids it (a page opened from a disk). */
  async function strip(crops, caption, name) {
    const size = 128, gap = 6, columns = Math.min(crops.length, 8), rows = Math.ceil(crops.length / columns);
    const canvas = h("canvas", { width: columns * (size + gap) - gap, height: rows * (size + gap) + 30 });
    const context = canvas.getContext("2d");
    context.fillStyle = "#fff";
    context.fillRect(0, 0, canvas.width, canvas.height);
    await Promise.all(crops.map((crop) => crop.querySelector("img")?.decode()));
    crops.forEach((crop, k) => {
      const picture = crop.querySelector("img");
      if (!picture) return;
      const frame = crop.getBoundingClientRect(), inside = picture.getBoundingClientRect(), scale = size / frame.width;
      context.save();
      context.translate((k % columns) * (size + gap), Math.floor(k / columns) * (size + gap));
      context.beginPath();
      context.rect(0, 0, size, size);
      context.clip();
      context.drawImage(picture, (inside.x - frame.x) * scale, (inside.y - frame.y) * scale, inside.width * scale, inside.height * scale);
      context.restore();
    });
    context.fillStyle = "#222";
    context.font = "14px sans-serif";
    context.fillText(caption, 0, canvas.height - 9, canvas.width);
    try {
      await png(canvas, name);
      return true;
    } catch (error) {
      if (error.name !== "SecurityError") throw error;
      return false;
    }
  }

  return { csv, json, svg, png, strip };
})();
