// Small charts in SVG, colored by the stylesheet: lines, bars, a plane of points.
"use strict";

saetool.charts = (() => {
  const { h, s, format } = saetool;

  /** Return about `count` round numbers between low and high. */
  function ticks(low, high, count = 4) {
    if (!(high > low)) return [low];
    const raw = (high - low) / count;
    const power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((candidate) => candidate >= raw);
    const found = [];
    for (let v = Math.ceil(low / step) * step; v <= high + step * 1e-9; v += step) found.push(Math.abs(v) < step * 1e-9 ? 0 : v);
    return found;
  }

  /** Return 1, 2 and 5 times powers of ten between two logarithms, as logarithms; powers alone over wide ranges. */
  function logTicks(low, high) {
    const found = [];
    for (let power = Math.floor(low); power <= Math.ceil(high); power++) {
      for (const m of high - low > 2.6 ? [1] : [1, 2, 5]) found.push(power + Math.log10(m));
    }
    return found.filter((v) => v >= low && v <= high);
  }

  function short(value) {
    const size = Math.abs(value);
    if (size >= 1e6) return `${+(value / 1e6).toPrecision(3)} M`;
    if (size >= 1e4) return `${+(value / 1e3).toPrecision(3)} k`;
    return String(+value.toPrecision(3)).replace("-", "−");
  }

  /** Return an SVG drawing area with axes: {svg, x(value), y(value)} in a view box of `width` × `height`. */
  function axes({ width, height, x, y, left = 44, bottom = 24, top = 8, right = 10, xTicks, yTicks, xText = short, yText = short, label, xTitle, yTitle, tickX = left - 6 }) {
    const svg = s("svg.chart", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
    const across = (v) => left + ((v - x[0]) / (x[1] - x[0] || 1)) * (width - left - right);
    const down = (v) => height - bottom - ((v - y[0]) / (y[1] - y[0] || 1)) * (height - top - bottom);
    for (const v of yTicks ?? ticks(...y)) {
      svg.append(s("line.grid", { x1: left, x2: width - right, y1: down(v), y2: down(v) }));
      const text = s("text.tick", { x: tickX, y: down(v) + 3.5, "text-anchor": "end" });
      text.textContent = yText(v);
      svg.append(text);
    }
    for (const v of xTicks ?? ticks(...x)) {
      const text = s("text.tick", { x: across(v), y: height - 7, "text-anchor": "middle" });
      text.textContent = xText(v);
      svg.append(text);
    }
    svg.append(s("line.axis", { x1: left, x2: width - right, y1: height - bottom, y2: height - bottom }));
    const titled = (text, attributes) => {
      const element = s("text.tick", { "text-anchor": "end", ...attributes });
      element.textContent = text;
      svg.append(element);
    };
    if (xTitle) titled(xTitle, { x: width - right, y: height + 8 });
    if (yTitle) titled(yTitle, { x: left - 6, y: top - 12, "text-anchor": "start", dx: -left + 8 });
    return { svg, x: across, y: down };
  }

  /** Return a figure with lines [{name, held_out, x, y}] and a readout that follows the pointer. */
  function lines(chart) {
    const width = 380, height = 190;
    const xs = chart.series.flatMap((one) => one.x), ys = chart.series.flatMap((one) => one.y);
    const yHigh = bound(ys);
    const yLow = Math.min(0, ...ys);
    const xRange = [Math.min(...xs), Math.max(...xs)];
    const percent = (v) => format("tick", v);
    const area = axes({ width, height, x: xRange, y: [yLow, yHigh], label: `${chart.title} during training`, yText: chart.share ? percent : short, xTitle: chart.clock === "step" ? "steps" : "activations seen" });
    const hues = colors(chart);
    chart.series.forEach((one, k) => {
      const i = hues[k];
      const points = one.x.map((x, k) => `${area.x(x).toFixed(1)},${area.y(Math.min(one.y[k], yHigh)).toFixed(1)}`);
      area.svg.append(s(`polyline.line.series-${i}${one.held_out ? ".held-out" : ""}`, { points: points.join(" ") }));
      if (one.x.length <= 30) {
        one.x.forEach((x, k) => area.svg.append(
          s(`circle.series-${i}`, { cx: area.x(x), cy: area.y(Math.min(one.y[k], yHigh)), r: 2.4 })));
      }
    });
    const readout = legend(chart);
    follow(area, chart, xRange, readout);
    return h("figure.curve", {}, h("figcaption", {}, chart.title, saved(area.svg, chart.title)), area.svg, readout.element);
  }

  /** Return a button that saves a figure, on pages that can. */
  function saved(svg, name) {
    const file = `${name.toLowerCase().replace(/[^a-z0-9]+/g, "-")}.svg`;
    return saetool.download ? h("button.chip.small", { type: "button", "aria-label": `Save ${name} as SVG`, onclick: () => saetool.download.svg(svg, file) }, "SVG") : null;
  }

  /** Return a color number a series: a measure has the same one in training and held out. */
  function colors(chart) {
    const names = [...new Set(chart.series.map(({ name }) => name.replace(/^held-out /, "")))];
    return chart.series.map(({ name }) => names.indexOf(name.replace(/^held-out /, "")) % 6);
  }

  /** Return an upper bound that a few early outliers do not decide: 1.05 × the largest after the first tenth. */
  function bound(values) {
    const sorted = [...values].sort((a, b) => a - b);
    const high = sorted[sorted.length - 1], usual = sorted[Math.floor(sorted.length * 0.97)];
    return (high > 4 * usual && usual > 0 ? usual * 2 : high) * 1.05 || 1;
  }

  function legend(chart) {
    const form = chart.share ? "share" : "value";
    const values = chart.series.map((one) => h("span.number", {}, format(form, one.y[one.y.length - 1])));
    const hues = colors(chart);
    const items = chart.series.map((one, i) =>
      h("li", {}, h(`span.swatch.series-${hues[i]}${one.held_out ? ".held-out" : ""}`), h("span", {}, one.name), values[i]));
    const show = (x) => chart.series.forEach((one, i) => {
      const k = x === null ? one.x.length - 1 : nearest(one.x, x);
      values[i].textContent = format(form, one.y[k]);
    });
    return { element: h("ul.legend", {}, ...items), show };
  }

  function nearest(sorted, x) {
    let best = 0;
    for (let i = 1; i < sorted.length; i++) if (Math.abs(sorted[i] - x) < Math.abs(sorted[best] - x)) best = i;
    return best;
  }

  function follow(area, chart, [low, high], readout) {
    const cursor = s("line.guide", { y1: 8, y2: 166 });
    area.svg.append(cursor);
    area.svg.addEventListener("pointermove", (event) => {
      const bounds = area.svg.getBoundingClientRect();
      const view = ((event.clientX - bounds.left) / bounds.width) * 380;
      const x = low + ((view - area.x(low)) / (area.x(high) - area.x(low) || 1)) * (high - low);
      const at = Math.min(Math.max(x, low), high);
      cursor.classList.add("on");
      cursor.setAttribute("x1", area.x(at));
      cursor.setAttribute("x2", area.x(at));
      readout.show(at);
    });
    area.svg.addEventListener("pointerleave", () => {
      cursor.classList.remove("on");
      readout.show(null);
    });
  }

  /** Return bars over bins [{low, high, count, className, title}]; the x axis is in log10, the heights are counts. */
  function bars(bins, { label, width = 380, height = 190, onpick, extra, hue, xText = powerText, xTitle, yTitle }) {
    const drawn = bins.filter((bin) => bin !== extra);
    const x = [drawn[0].low, drawn[drawn.length - 1].high];
    const most = Math.max(1, ...bins.map((bin) => bin.count));
    const left = extra ? 92 : 44;
    const whole = (v) => Number.isInteger(v);
    const powers = ticks(...x, 5).filter(whole);
    const area = axes({ width, height, x, y: [0, most], left, label, xTicks: powers, xText, xTitle, yTitle, top: yTitle ? 22 : 8, bottom: 24, tickX: 38, yTicks: ticks(0, most).filter(whole) });
    const bar = (bin, from, to) => {
      const element = s(`rect.bar${bin.className ?? hue ? `.${bin.className ?? hue}` : ""}`, {
        x: from + 0.5, width: Math.max(to - from - 1, 0.5), y: area.y(bin.count), height: area.y(0) - area.y(bin.count) });
      element.append(s("title"));
      element.firstChild.textContent = bin.title;
      if (onpick) element.addEventListener("click", () => onpick(bin));
      return element;
    };
    for (const bin of drawn) area.svg.append(bar(bin, area.x(bin.low), area.x(bin.high)));
    if (extra) {
      area.svg.append(bar(extra, 50, 68));
      const text = s("text.tick", { x: 59, y: height - 7, "text-anchor": "middle" });
      text.textContent = extra.name;
      area.svg.append(text);
    }
    return area.svg;
  }

  const SUPERSCRIPT = "⁰¹²³⁴⁵⁶⁷⁸⁹";
  const powerText = (v) => `10${v < 0 ? "⁻" : ""}${String(Math.abs(v)).replace(/\d/g, (d) => SUPERSCRIPT[d])}`;

  /** Return a power of ten as a percentage: −2 is 1%. */
  const percentPower = (v) => format("tick", 10 ** v);

  /** Return a bar of a share with a tick at its base rate, for a cell of a table. */
  function shareBar(share, base, note) {
    const svg = s("svg.share", { viewBox: "0 0 200 16", preserveAspectRatio: "none", role: "img", "aria-label": note });
    const across = (v) => Math.min(Math.max(v, 0), 1) * 200;
    svg.append(s("rect.share-room", { x: 0, y: 4, width: 200, height: 8 }));
    if (!Number.isNaN(share)) svg.append(s("rect.share-bar", { x: 0, y: 4, width: across(share), height: 8 }));
    if (!Number.isNaN(base)) svg.append(s("line.base-tick", { x1: across(base), x2: across(base), y1: 0, y2: 16 }));
    return svg;
  }

  return { logTicks, short, axes, lines, saved, bars, shareBar, percentPower };
})();
