// What every page uses: chunks loaded on demand, numbers in words, elements without HTML strings.
"use strict";

const saetool = (() => {
  const chunks = new Map();

  /** Return the record of a chunk: a promise and the functions that settle it. */
  function record(name) {
    if (!chunks.has(name)) {
      const entry = { asked: false };
      entry.promise = new Promise((resolve, reject) => Object.assign(entry, { resolve, reject }));
      entry.promise.catch(() => {});
      chunks.set(name, entry);
    }
    return chunks.get(name);
  }

  function bytesOf(base64) {
    const text = atob(base64);
    const bytes = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
    return bytes;
  }

  async function inflate(bytes) {
    if (!bytes.length) return new ArrayBuffer(0);
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Response(stream).arrayBuffer();
  }

  const TYPES = {
    float64: Float64Array, float32: Float32Array, int32: Int32Array, uint32: Uint32Array,
    int16: Int16Array, uint16: Uint16Array, int8: Int8Array, uint8: Uint8Array,
  };

  /** Take a chunk: named typed arrays and JSON values. Chunk files call this. */
  async function define(name, header, body) {
    const entry = record(name);
    entry.asked = true;
    try {
      const buffer = await inflate(bytesOf(body));
      const found = { values: header.values };
      let start = 0;
      for (const [key, type, size] of header.arrays) {
        found[key] = new TYPES[type](buffer, start, size);
        start += found[key].byteLength;
      }
      entry.resolve(found);
    } catch (error) {
      entry.reject(error);
    }
  }

  /** Return a promise of the chunk `name`, loading data/NAME.js the first time. */
  function load(name) {
    const entry = record(name);
    if (!entry.asked) {
      entry.asked = true;
      const script = document.createElement("script");
      script.src = `data/${name}.js`;
      script.onload = () => script.remove();
      script.onerror = () => entry.reject(new Error(`data/${name}.js is missing from this report`));
      document.head.append(script);
    }
    return entry.promise;
  }

  /** Return an element. Text becomes text nodes, never markup; `on…` are listeners; `style` sets properties. */
  function h(tag, properties = {}, ...children) {
    const [name, ...classes] = tag.split(".");
    const element = document.createElement(name || "div");
    if (classes.length) element.classList.add(...classes);
    for (const [key, value] of Object.entries(properties)) {
      if (value === null || value === undefined || value === false) continue;
      if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
      else if (key === "style") for (const [k, v] of Object.entries(value)) element.style.setProperty(k, v);
      else element.setAttribute(key, value === true ? "" : value);
    }
    element.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
    return element;
  }

  // A name, not an address: nothing is fetched from it. The check for addresses elsewhere stays strict this way.
  const SVG = ["http:", "", "www.w3.org", "2000", "svg"].join("/");

  /** Return an SVG element. */
  function s(tag, attributes = {}, ...children) {
    const [name, ...classes] = tag.split(".");
    const element = document.createElementNS(SVG, name);
    if (classes.length) element.classList.add(...classes);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.append(...children);
    return element;
  }

  /** Return the JSON that a chunk holds as an array of bytes. */
  const json = (bytes) => JSON.parse(new TextDecoder().decode(bytes));

  const bit = (bytes, i) => i >= 0 && ((bytes[i >> 3] >> (i & 7)) & 1) === 1;

  /** Return where each member of a run-length coded array begins: [0, counts[0], counts[0] + counts[1], …]. */
  function offsets(counts) {
    const starts = new Uint32Array(counts.length + 1);
    for (let i = 0; i < counts.length; i++) starts[i + 1] = starts[i] + counts[i];
    return starts;
  }

  /** Read the URL's fragment as parameters. */
  const parameters = () => new URLSearchParams(location.hash.slice(1));

  /**
   * Return the item that the fragment names (`#latent=12`, or `#12`) of n items: its number, the text where there is
   * no such item, or null where the fragment names none (it is empty, or an element of the page).
   */
  function item(name, n) {
    const bare = location.hash.slice(1);
    const text = parameters().get(name) ?? (bare.includes("=") || document.getElementById(bare) ? "" : bare);
    if (!text) return null;
    return /^\d+$/.test(text) && Number(text) < n ? Number(text) : text;
  }

  /** Say that there is no such item, or (null) take that back. */
  function missing(text) {
    const box = document.getElementById("missing");
    box.hidden = text === null;
    box.textContent = text ?? "";
    document.getElementById("item").hidden = text !== null;
    document.getElementById("problem").hidden = true;
  }

  /** Show a failure where the reader looks. */
  function complain(error) {
    const message = typeof DecompressionStream === "undefined"
      ? "This report needs a browser of 2023 or newer (Chrome 80, Firefox 113, Safari 16.4)."
      : String(error.message || error);
    const box = document.getElementById("problem");
    box.textContent = message;
    box.hidden = false;
    document.body.dataset.ready = document.body.dataset.ready ?? "failed";
    console.error(error);
  }

  // The first script that runs asks for what the page will show, while the others are still on their way.
  const { first, block } = document.documentElement.dataset, asked = first ? item("latent", Infinity) : null;
  if (typeof asked === "number") load(`${first}/${Math.floor(asked / Number(block))}`);

  document.addEventListener("DOMContentLoaded", () => {
    const place = document.getElementById("command");
    if (place) load("command").then((chunk) => { place.textContent = chunk.values.command; }).catch(complain);
  });

  return { define, load, h, s, json, bit, offsets, parameters, item, missing, complain };
})();

/** Numbers in words, one function a form of column. */
saetool.format = (() => {
  const NONE = "–";
  const digits = (value, n) => value.toLocaleString("en-US", { maximumFractionDigits: n, minimumFractionDigits: n });
  const SUPERSCRIPT = "⁰¹²³⁴⁵⁶⁷⁸⁹";

  function scientific(value) {
    const [mantissa, exponent] = value.toExponential(1).split("e");
    const power = String(Math.abs(Number(exponent))).replace(/\d/g, (d) => SUPERSCRIPT[d]);
    return `${mantissa}·10${Number(exponent) < 0 ? "⁻" : ""}${power}`;
  }

  function value(number) {
    const size = Math.abs(number);
    if (size === 0) return "0";
    if (size < 0.001) return scientific(number);
    return size >= 1000 ? digits(number, 0) : size >= 100 ? digits(number, 1) : size >= 1 ? digits(number, 2) : digits(number, 3);
  }

  function share(number) {
    const percent = number * 100;
    if (percent === 0) return "0%";
    if (Math.abs(percent) < 0.001) return `${scientific(percent)}%`;
    return `${digits(percent, percent >= 10 ? 1 : percent >= 0.1 ? 2 : 3)}%`;
  }

  const FORMS = {
    count: (number) => digits(number, 0),
    share,
    value,
    unit: (number) => digits(number, 3),
    signed: (number) => `${Math.abs(number) < 0.0005 ? "" : number < 0 ? "−" : "+"}${digits(Math.abs(number), 3)}`,
    // A tick of an axis: a share without zeros behind it.
    tick: (number) => share(number).replace(/(\.\d*?)0+%$/, "$1%").replace(".%", "%"),
    probability: (number) => (number === 0 ? "< 10⁻³⁰⁰" : number < 0.001 ? scientific(number) : digits(number, 3)),
    flag: (number) => (number ? "yes" : "no"),
  };
  return (form, number) =>
    number === null || number === undefined || Number.isNaN(number) ? NONE : (FORMS[form] || FORMS.value)(number);
})();

/** The facts of the site that every page needs, and of single images. */
saetool.site = (() => {
  const { load, bit, json } = saetool;

  /** Return an image's facts from what chunks say of it: [row, path, width, height, label values] and its box in steps. */
  function facts(site, [row, path, width, height, values], box) {
    const steps = site.values.box_steps;
    return {
      row, path, width, height, ratio: width && height ? width / height : 1,
      box: box && box.length ? Array.from(box, (step) => step / steps) : null,
      labels: site.values.labels.map(({ name }, k) => [name, values[k]]),
      thumbnail: thumbnail(site, row),
      page: bit(site.image_page, row),
    };
  }

  const thumbnail = (site, row) => (bit(site.thumbnail, row) ? `thumbs/${Math.floor(row / 1000)}/${row}.webp` : null);

  /** Return a promise of an image's facts: path, width, height, box of the patch grid as shares, labels, strongest latents. */
  async function image(row) {
    const site = await load("site"), { images: size, strongest } = site.values.blocks;
    const chunk = await load(`images/${Math.floor(row / size)}`);
    chunk.list = chunk.list || json(chunk.shown);
    const i = row - chunk.values.start, found = facts(site, chunk.list[i], chunk.box?.subarray(4 * i, 4 * i + 4));
    const latents = [];
    for (let k = i * strongest; chunk.latent && k < (i + 1) * strongest; k++) {
      if (chunk.latent[k] >= 0) latents.push({ latent: chunk.latent[k], value: chunk.value[k], patch: chunk.patch[k] });
    }
    return { ...found, held_out: chunk.held_out[i] === 1, latents };
  }

  /** Return a random living latent with a page. */
  async function random() {
    const site = await load("site");
    const choices = [];
    for (let i = 0; i < site.values.n_latents; i++) if (bit(site.live, i) && bit(site.with_page, i)) choices.push(i);
    return choices.length ? choices[Math.floor(Math.random() * choices.length)] : 0;
  }

  return {
    get ready() {
      return load("site");
    },
    facts,
    image,
    random,
    thumbnail,
  };
})();

document.addEventListener("DOMContentLoaded", () => {
  // A link from the start, so that it also opens in a new tab; drawn anew after each use.
  const links = [...document.querySelectorAll("a[data-random]")];
  const draw = async () => {
    for (const link of links) link.href = `latent.html#latent=${await saetool.site.random()}`;
  };
  if (links.length) draw().catch(saetool.complain);
  for (const link of links) link.addEventListener("click", () => setTimeout(draw));
});
