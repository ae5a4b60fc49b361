// The overview of runs: the plane of L0 and FVU, and a table that sorts.
"use strict";

(() => {
  const { load, plane, complain } = saetool;
  const by = (id) => document.getElementById(id);

  /** Draw all runs, colored by what compares with what; by family where everything compares. */
  function draw(runs) {
    const drawn = runs.filter(({ l0, fvu }) => l0 !== null && fvu !== null);
    by("plane").closest("figure").hidden = !drawn.length;
    const one = new Set(runs.map(({ group }) => group)).size === 1;
    if (drawn.length) by("plane").replaceChildren(plane(drawn.map((run) => ({ ...run, kind: one ? run.family : `${run.group}: ${run.site}` }))));
  }

  /** Draw each sweep in a plane of its own: members and baselines, measured on the same tokens. */
  function drawSweeps(sweeps) {
    document.querySelectorAll("[data-sweep]").forEach((root, i) =>
      root.replaceChildren(plane(sweeps[i].points.map((point) => ({ ...point, interval: point.fvu_interval })))));
  }

  /** Sort the table's rows by one column; numbers by value, text by letters, none last. */
  function sortable() {
    const table = document.querySelector("table.runs");
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = (row) => {
        const cell = row.cells[column], value = cell.dataset.value;
        return value === undefined ? cell.textContent : value === "" ? NaN : Number(value);
      };
      const rows = [...table.tBodies[0].rows].sort((a, b) => {
        const x = key(a), y = key(b);
        if (typeof x === "string") return (down ? -1 : 1) * x.localeCompare(y);
        return Number.isNaN(x) - Number.isNaN(y) || (down ? y - x : x - y);
      });
      table.tBodies[0].append(...rows);
    }));
  }

  document.addEventListener("DOMContentLoaded", async () => {
    try {
      const { runs, sweeps } = (await load("runs")).values;
      draw(runs);
      drawSweeps(sweeps);
      sortable();
      document.body.dataset.ready = "true";
    } catch (error) {
      complain(error);
    }
  });
})();
