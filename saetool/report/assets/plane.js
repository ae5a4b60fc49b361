// The plane of L0 and FVU: a point an autoencoder or baseline, better toward the lower left.
"use strict";

saetool.plane = (() => {
  const { h, s, format, charts } = saetool;
  const WIDTH = 900, HEIGHT = 400;
  const NAME_WIDTH = 170, NAME_HEIGHT = 15; // no other name begins so near to one

  const padded = (low, high) => {
    const pad = (high - low) * 0.08 || Math.abs(high) * 0.1 || 1;
    return [Math.max(0, low - pad), high + pad];
  };

  /** Return a chart of points [{name, l0, fvu, kind, link, interval, frontier}], colored by kind, with their frontier. */
  function plane(points) {
    const drawn = points.filter(({ l0, fvu }) => l0 !== null && fvu !== null);
    const range = (values) => padded(Math.min(...values), Math.max(...values));
    const across = range(drawn.map(({ l0 }) => l0)), up = range(drawn.flatMap(reach));
    const area = charts.axes({ width: WIDTH, height: HEIGHT, left: 60, bottom: 44, x: across, y: up, label: "Fraction of variance unexplained against L0" });
    const kinds = [...new Set(points.map(({ kind }) => kind))];
    const best = drawn.filter(({ frontier }) => frontier).sort((a, b) => a.l0 - b.l0);
    if (best.length > 1) area.svg.append(s("polyline.frontier", { points: best.map(({ l0, fvu }) => `${area.x(l0).toFixed(1)},${area.y(fvu).toFixed(1)}`).join(" ") }));
    const heights = nameHeights(drawn, area);
    for (const one of drawn) area.svg.append(mark(one, kinds.indexOf(one.kind) % 6, area, heights.get(one)));
    axisNames(area.svg);
    const keys = kinds.map((kind, k) => h("li", {}, h(`span.swatch.series-${k % 6}`), kind));
    if (best.length > 1) keys.push(h("li", {}, h("span.swatch.held-out"), "no other point has a lower L0 and a lower FVU"));
    return h("div", {}, area.svg, h("ul.legend", {}, ...keys));
  }

  /** Say whether a link leads into this site or beside it: an address with another scheme, or a script, does not. */
  function isPlace(link) {
    try {
      return Boolean(link) && new URL(link, location.href).protocol === location.protocol;
    } catch {
      return false;
    }
  }

  /** Return every height at which a point is drawn: itself and the ends of its interval. */
  const reach = ({ fvu, interval }) => [fvu, ...(interval ?? []).filter((end) => end !== null)];

  /** Return how high each point's name stands: at its point, or higher where the name of a lower one is in the way. */
  function nameHeights(points, area) {
    const placed = [];
    for (const one of [...points].sort((a, b) => area.y(b.fvu) - area.y(a.fvu))) {
      const x = area.x(one.l0);
      let y = area.y(one.fvu);
      for (const other of placed) if (Math.abs(other.x - x) < NAME_WIDTH && y > other.y - NAME_HEIGHT) y = other.y - NAME_HEIGHT;
      placed.push({ one, x, y });
    }
    return new Map(placed.map(({ one, y }) => [one, y]));
  }

  /** Return a point with its name, its interval of confidence, and its link. */
  function mark(one, color, area, nameAt) {
    const x = area.x(one.l0), y = area.y(one.fvu);
    const late = x > WIDTH * 0.75;
    const name = s("text.point-name", { x: late ? x - 11 : x + 11, y: nameAt + 4, "text-anchor": late ? "end" : "start" });
    name.textContent = one.name.slice(0, 60);
    const title = s("title");
    title.textContent = `${one.name}: L0 ${format("value", one.l0)}, FVU ${format("unit", one.fvu)}`;
    const link = isPlace(one.link) ? s("a", { href: one.link }) : s("g");
    link.append(title);
    const [low, high] = one.interval ?? [null, null];
    if (low !== null && high !== null) link.append(s("line.whisker", { x1: x, x2: x, y1: area.y(low), y2: area.y(high) }));
    link.append(s(`circle.series-${color}`, { cx: x, cy: y, r: 6 }), name);
    return link;
  }

  function axisNames(svg) {
    const across = s("text.tick", { x: WIDTH / 2, y: HEIGHT + 8, "text-anchor": "middle" });
    across.textContent = "L0: latents active on an average token";
    const up = s("text.tick", { x: 14, y: HEIGHT / 2, "text-anchor": "middle", transform: `rotate(-90 14 ${HEIGHT / 2})` });
    up.textContent = "fraction of variance unexplained";
    svg.append(across, up);
  }

  return plane;
})();
