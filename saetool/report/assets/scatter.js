// Frequency against strength, a point a latent: hover for its pictures, drag a box to filter the table.
"use strict";

saetool.scatter = (() => {
  const { h, format, charts, crops, list } = saetool;
  const X = "token_frequency", Y = "mean_firing";
  const MARGIN = { left: 46, right: 12, top: 10, bottom: 34 };
  const REACH = 14; // pixels from the pointer to the nearest point

  class Scatter {
    constructor(root, model, colorSelect, legend) {
      Object.assign(this, { root, model, colorSelect, legend });
      this.canvas = h("canvas.plane", { role: "img", "aria-label": "Frequency against strength of every living latent; the same choice can be made with the range filters of the table" });
      this.tip = h("a.tip", { hidden: true });
      this.box = h("div.box", { hidden: true });
      root.replaceChildren(this.canvas, this.box, this.tip);
      this.collect();
      this.listen();
      new ResizeObserver(() => this.draw()).observe(root);
      matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
      model.addEventListener("change", () => this.draw());
      colorSelect.addEventListener("change", () => model.set({ color: colorSelect.value }));
    }

    /** Take the logarithms once; a latent without either number is not in the plane. */
    collect() {
      const { model } = this, xs = model.table[X], ys = model.table[Y];
      this.members = [];
      this.x = new Float32Array(model.n);
      this.y = new Float32Array(model.n);
      for (let i = 0; i < model.n; i++) {
        if (!(xs[i] > 0) || !(ys[i] > 0)) continue;
        this.x[i] = Math.log10(xs[i]);
        this.y[i] = Math.log10(ys[i]);
        this.members.push(i);
      }
      const range = (values) => {
        let low = Infinity, high = -Infinity;
        for (const i of this.members) {
          low = Math.min(low, values[i]);
          high = Math.max(high, values[i]);
        }
        const pad = (high - low || 1) * 0.03;
        return this.members.length ? [low - pad, high + pad] : [0, 1];
      };
      this.rangeX = range(this.x);
      this.rangeY = range(this.y);
    }

    across = (v) => MARGIN.left + ((v - this.rangeX[0]) / (this.rangeX[1] - this.rangeX[0])) * (this.width - MARGIN.left - MARGIN.right);
    down = (v) => this.height - MARGIN.bottom - ((v - this.rangeY[0]) / (this.rangeY[1] - this.rangeY[0])) * (this.height - MARGIN.top - MARGIN.bottom);
    backX = (px) => this.rangeX[0] + ((px - MARGIN.left) / (this.width - MARGIN.left - MARGIN.right)) * (this.rangeX[1] - this.rangeX[0]);
    backY = (py) => this.rangeY[0] + ((this.height - MARGIN.bottom - py) / (this.height - MARGIN.top - MARGIN.bottom)) * (this.rangeY[1] - this.rangeY[0]);

    draw() {
      const bounds = this.root.getBoundingClientRect(), ratio = devicePixelRatio || 1;
      this.width = bounds.width;
      this.height = bounds.height;
      if (!this.width) return;
      this.canvas.width = Math.round(this.width * ratio);
      this.canvas.height = Math.round(this.height * ratio);
      const context = this.canvas.getContext("2d");
      context.scale(ratio, ratio);
      const style = getComputedStyle(this.root);
      this.drawAxes(context, style);
      this.drawPoints(context, style);
      this.drawBox();
    }

    drawAxes(context, style) {
      context.font = `11px ${style.fontFamily}`;
      context.strokeStyle = style.getPropertyValue("--hairline");
      context.fillStyle = style.getPropertyValue("--muted");
      context.lineWidth = 1;
      context.textAlign = "center";
      for (const v of charts.logTicks(...this.rangeX)) {
        this.line(context, this.across(v), MARGIN.top, this.across(v), this.height - MARGIN.bottom);
        context.fillText(format("tick", 10 ** v), this.across(v), this.height - MARGIN.bottom + 14);
      }
      context.textAlign = "right";
      for (const v of charts.logTicks(...this.rangeY)) {
        this.line(context, MARGIN.left, this.down(v), this.width - MARGIN.right, this.down(v));
        context.fillText(charts.short(10 ** v), MARGIN.left - 6, this.down(v) + 4);
      }
      context.textAlign = "center";
      context.fillText("share of tokens on which the latent fires", (this.width + MARGIN.left) / 2, this.height - 5);
      context.save();
      context.translate(10, this.height / 2 - MARGIN.bottom / 2);
      context.rotate(-Math.PI / 2);
      context.fillText("mean activation when firing", 0, 0);
      context.restore();
    }

    line(context, x1, y1, x2, y2) {
      context.beginPath();
      context.moveTo(Math.round(x1) + 0.5, Math.round(y1) + 0.5);
      context.lineTo(Math.round(x2) + 0.5, Math.round(y2) + 0.5);
      context.stroke();
    }

    /** Draw what is filtered out in gray below what passes, in color. */
    drawPoints(context, style) {
      const color = this.coloring(style);
      const radius = this.members.length > 4000 ? 1.6 : 2.4;
      for (const pass of [0, 1]) {
        context.globalAlpha = pass ? 0.8 : 0.1;
        context.fillStyle = style.getPropertyValue("--muted");
        for (const i of this.members) {
          if (this.model.mask[i] !== pass) continue;
          if (pass) context.fillStyle = color(i);
          const x = this.across(this.x[i]), y = this.down(this.y[i]);
          context.fillRect(x - radius, y - radius, 2 * radius, 2 * radius);
        }
      }
      context.globalAlpha = 1;
    }

    /** Return latent → color for the chosen column, and describe it in the legend. */
    coloring(style) {
      const key = this.model.filters.color || this.colorSelect.value;
      if (key === "status" || !this.model.byKey.has(key)) {
        const names = this.model.statuses.filter((name) => name !== "dead");
        this.legend.replaceChildren(...names.map((name) => h("span.key", {}, h(`span.status-dot.${name}`), name)));
        const colors = this.model.statuses.map((name) => style.getPropertyValue(`--${name}`));
        return (i) => colors[this.model.table.status[i]];
      }
      const values = this.model.table[key], column = this.model.byKey.get(key);
      const sorted = this.members.map((i) => values[i]).filter((v) => !Number.isNaN(v)).sort((a, b) => a - b);
      const low = sorted[Math.floor(sorted.length * 0.01)] ?? 0, high = sorted[Math.floor((sorted.length - 1) * 0.99)] ?? 1;
      this.legend.replaceChildren(h("span.key", {}, format(column.form, low), h(`span.ramp.${saetool.hues.of(key)}`), format(column.form, high)));
      const muted = style.getPropertyValue("--muted");
      const shades = saetool.hues.shades(key, style, 65);
      return (i) => (Number.isNaN(values[i]) ? muted : shades[Math.round(64 * Math.min(Math.max((values[i] - low) / (high - low || 1), 0), 1))]);
    }

    /** Show the present ranges of both axes as the box. */
    drawBox() {
      const x = this.model.range(X), y = this.model.range(Y);
      const bounded = [x.low, x.high, y.low, y.high].some(Number.isFinite);
      this.box.hidden = !bounded;
      if (!bounded) return;
      const log = (v, low) => (Number.isFinite(v) ? Math.log10(Math.max(v, 1e-30)) : low);
      const left = this.across(Math.max(log(x.low, this.rangeX[0]), this.rangeX[0])), right = this.across(Math.min(log(x.high, this.rangeX[1]), this.rangeX[1]));
      const top = this.down(Math.min(log(y.high, this.rangeY[1]), this.rangeY[1])), bottom = this.down(Math.max(log(y.low, this.rangeY[0]), this.rangeY[0]));
      this.frame(left, top, right, bottom);
    }

    frame(left, top, right, bottom) {
      this.box.hidden = false;
      const set = (key, value) => this.box.style.setProperty(key, `${Math.max(value, 0)}px`);
      set("left", left);
      set("top", top);
      set("width", right - left);
      set("height", bottom - top);
    }

    listen() {
      const at = (event) => {
        const bounds = this.canvas.getBoundingClientRect();
        return [event.clientX - bounds.left, event.clientY - bounds.top];
      };
      this.canvas.addEventListener("pointerdown", (event) => {
        if (event.pointerType === "touch" || event.button !== 0) return;
        this.start = at(event);
        this.canvas.setPointerCapture(event.pointerId);
      });
      this.canvas.addEventListener("pointermove", (event) => {
        const here = at(event);
        if (this.start && this.far(here)) this.frame(...this.corners(here));
        else this.hover(here);
      });
      this.canvas.addEventListener("pointerup", (event) => (event.pointerType === "touch" ? this.hover(at(event)) : this.finish(at(event), event)));
      this.canvas.addEventListener("auxclick", (event) => this.finish(at(event), event));
      this.canvas.addEventListener("pointerleave", (event) => { if (event.pointerType !== "touch") this.tip.hidden = true; });
    }

    far = ([x, y]) => Math.hypot(x - this.start[0], y - this.start[1]) > 5;
    corners = ([x, y]) => [Math.min(x, this.start[0]), Math.min(y, this.start[1]), Math.max(x, this.start[0]), Math.max(y, this.start[1])];

    /** End a drag: its box becomes two range filters. A click opens the latent below it; a tap shows it with its link. */
    finish(here, event) {
      const started = this.start;
      if (started && this.far(here)) {
        const [left, top, right, bottom] = this.corners(here);
        const { filters } = this.model;
        const others = filters.ranges.filter(({ key }) => key !== X && key !== Y);
        const x = { key: X, low: 10 ** this.backX(left), high: 10 ** this.backX(right) };
        const y = { key: Y, low: 10 ** this.backY(bottom), high: 10 ** this.backY(top) };
        this.model.set({ ranges: [...others, x, y] });
      } else if (this.nearest(here) >= 0 && (started || event.button === 1)) {
        const href = list.address(this.nearest(here), this.model.fragment(this.model.filters));
        if (event.button === 1 || event.ctrlKey || event.metaKey) window.open(href, "_blank", "noopener");
        else location.href = href;
      }
      this.start = null;
    }

    nearest([x, y]) {
      let best = -1, distance = REACH ** 2;
      for (const i of this.members) {
        if (!this.model.mask[i]) continue;
        const d = (this.across(this.x[i]) - x) ** 2 + (this.down(this.y[i]) - y) ** 2;
        if (d < distance) [best, distance] = [i, d];
      }
      return best;
    }

    /** Show the pictures and numbers of the latent nearest to the pointer. */
    async hover(here) {
      const latent = this.nearest(here);
      this.canvas.classList.toggle("pointing", latent >= 0);
      if (latent < 0) this.tip.hidden = true;
      if (latent < 0 || (latent === this.tipped && !this.tip.hidden)) return;
      this.tipped = latent;
      const number = (key, form) => format(form, this.model.number(key, latent));
      const stamps = h("span.stamps");
      this.tip.href = list.address(latent, this.model.fragment(this.model.filters));
      this.tip.replaceChildren(h("strong", {}, `Latent ${latent}`), h("span.muted", {}, ` · fires on ${number(X, "share")} · strength ${number(Y, "value")}`), stamps);
      this.tip.hidden = false;
      const left = this.across(this.x[latent]), top = this.down(this.y[latent]);
      this.tip.style.setProperty("left", `${Math.min(Math.max(left - 150, 0), Math.max(this.width - 300, 0))}px`);
      this.tip.style.setProperty("top", `${top > 150 ? top - 145 : top + 14}px`);
      const found = await crops.glimpse(latent);
      if (this.tipped === latent) stamps.replaceChildren(...found);
    }
  }

  return { Scatter, X, Y };
})();

/** One hue a quantity, wherever it is drawn: activations as in the heat maps, all others in shades of one color. */
saetool.hues = (() => {
  const { heat } = saetool;
  const HUES = { max: "activation", mean: "activation", mean_firing: "activation", monosemanticity: "specificity", monosemanticity_excess: "specificity", monosemanticity_low: "specificity", spatial_entropy: "position", neighbor_similarity: "likeness", coactivation_similarity: "likeness", encoder_decoder_cosine: "likeness" };
  const LABELS = ["auroc", "auroc_low", "average_precision", "purity", "entropy", "q_value", "p_value", "spearman"];

  /** Return the name of a column's hue, a class of the style sheet. */
  const of = (key) => HUES[key] ?? (LABELS.includes(key.split(".").pop()) ? "association" : "frequency");

  /** Return `count` colors from weak to strong. */
  function shades(key, style, count) {
    if (of(key) === "activation") return Array.from({ length: count }, (_, k) => `rgb(${heat.color((k / (count - 1)) * 0.94).join(" ")})`);
    const hue = style.getPropertyValue(`--hue-${of(key)}`).trim(), weak = style.getPropertyValue("--weak").trim();
    const channels = (text) => text.match(/[\da-f]{2}/gi).map((pair) => parseInt(pair, 16)), [low, high] = [channels(weak), channels(hue)];
    return Array.from({ length: count }, (_, k) => `rgb(${low.map((v, c) => Math.round(v + (high[c] - v) * (k / (count - 1)))).join(" ")})`);
  }

  return { of, shades };
})();
