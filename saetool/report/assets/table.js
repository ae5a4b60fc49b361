// The table of latents: only the rows in view exist, so that a hundred thousand stay fluid.
"use strict";

saetool.table = (() => {
  const { h, format, crops, list } = saetool;
  const WIDTH = { count: 116, share: 100, value: 92, unit: 124, signed: 136, probability: 88, text: 176, flag: 120 };
  const OVERSCAN = 6;
  const SETTLE_MS = 70; // pictures wait until a fast scroll has settled

  /** Return the columns in display order for the chosen label. */
  function shown(model) {
    const first = ["image_frequency", "monosemanticity_excess", "max"];
    const plain = model.columns.filter((column) => column.label === null);
    const lead = first.map((key) => plain.find((column) => column.key === key)).filter(Boolean);
    const ofLabel = model.columns.filter((column) => column.label !== null && column.label === model.filters.label);
    return [...lead, ...ofLabel, ...plain.filter((column) => !first.includes(column.key))];
  }

  class Table {
    constructor(root, model, site) {
      Object.assign(this, { root, model, site, rows: new Map(), active: 0 });
      this.head = h("div.row.head", { role: "row", "aria-rowindex": "1" });
      this.body = h("div.body", { role: "rowgroup" });
      this.empty = h("p.empty", { hidden: true }, "No latent passes these filters.");
      this.view = h("div.view", { role: "grid", tabindex: "0", "aria-label": "Latents", "aria-describedby": "table-help" },
        h("div.head-group", { role: "rowgroup" }, this.head), this.body);
      root.replaceChildren(this.view, this.empty);
      this.view.addEventListener("scroll", () => this.schedule(), { passive: true });
      this.view.addEventListener("keydown", (event) => this.key(event));
      new ResizeObserver(() => this.schedule()).observe(this.view);
      model.addEventListener("change", () => this.refresh());
      this.refresh();
    }

    refresh() {
      this.columns = shown(this.model);
      const widths = this.columns.map((column) => `${WIDTH[column.form]}px`).join(" ");
      this.view.style.setProperty("--columns", `var(--lead) 72px ${widths}`);
      this.rowHeight = parseFloat(getComputedStyle(this.view).getPropertyValue("--row"));
      this.view.setAttribute("aria-rowcount", this.model.order.length + 1);
      this.view.setAttribute("aria-colcount", this.columns.length + 2);
      this.drawHead();
      this.body.replaceChildren();
      this.rows.clear();
      this.body.style.height = `${this.model.order.length * this.rowHeight}px`;
      this.empty.hidden = this.model.order.length > 0;
      this.active = 0;
      this.view.scrollTop = 0;
      this.draw();
    }

    /** Scroll to where the reader was. */
    scroll(top) {
      this.view.scrollTop = top;
      this.draw();
    }

    /** Keep which heading the keyboard is on: Tab reaches that one, left and right the others. */
    hold(key) {
      this.held = key;
      for (const button of this.head.querySelectorAll("button")) button.tabIndex = button.dataset.key === key ? 0 : -1;
    }

    /** Draw the headings; one that had the focus has it again. */
    drawHead() {
      const focused = this.head.contains(document.activeElement);
      if (!["latent", "status", ...this.columns.map(({ key }) => key)].includes(this.held)) this.held = "latent";
      const cell = (key, title, help, className = "") => {
        const { sort } = this.model.filters;
        const state = sort === key ? "ascending" : sort === `-${key}` ? "descending" : "none";
        const turn = () => this.model.set({ sort: state === "descending" ? key : state === "ascending" && key === "latent" ? `-${key}` : state === "ascending" ? "latent" : key === "latent" ? key : `-${key}` });
        const button = h("button", { type: "button", title: help, onclick: turn, onfocus: () => this.hold(key), tabindex: key === this.held ? "0" : "-1", "data-key": key }, h("span", {}, title));
        return h(`div.cell${className}`, { role: "columnheader", "aria-sort": state }, button);
      };
      this.head.replaceChildren(
        cell("latent", "Latent", "Number of the latent", ".lead"),
        cell("status", "Status", "Dead: never fires. Rare: too seldom to judge. Dense: on a large share of tokens"),
        ...this.columns.map((column) => cell(column.key, column.title, column.help, column.form === "text" ? "" : ".number")),
      );
      if (focused) this.head.querySelector("button[tabindex='0']").focus();
    }

    schedule() {
      if (this.waiting) return;
      this.waiting = requestAnimationFrame(() => {
        this.waiting = 0;
        this.draw();
      });
    }

    /** Make the rows in view, drop the others. */
    draw() {
      const top = this.view.scrollTop, height = this.view.clientHeight;
      const first = Math.max(0, Math.floor(top / this.rowHeight) - OVERSCAN);
      const last = Math.min(this.model.order.length, Math.ceil((top + height) / this.rowHeight) + OVERSCAN);
      for (const [place, row] of this.rows) {
        if (place < first || place >= last) {
          row.remove();
          this.rows.delete(place);
        }
      }
      const fresh = document.createDocumentFragment();
      for (let place = first; place < last; place++) {
        if (this.rows.has(place)) continue;
        const row = this.row(place);
        this.rows.set(place, row);
        fresh.append(row);
      }
      this.body.append(fresh);
    }

    row(place) {
      const latent = this.model.order[place], { model } = this;
      const stamps = h("span.stamps", { "aria-hidden": "true" });
      const href = list.address(latent, model.fragment(model.filters));
      const name = h("a", { href, tabindex: "-1", draggable: "false", "aria-label": `Latent ${latent}` }, stamps, h("span", {}, String(latent)));
      const status = model.status(latent);
      const cells = this.columns.map((column) => (column.form === "text"
        ? h("div.cell.clip", { role: "gridcell", dir: "auto", title: (model.text(column.key, latent) ?? "").slice(0, 300) }, model.text(column.key, latent) ?? "–")
        : h("div.cell.number", { role: "gridcell" }, format(column.form, model.number(column.key, latent)))));
      const row = h("div.row", {
        role: "row", id: `row-${place}`, "aria-rowindex": place + 2, "data-latent": latent,
        style: { transform: `translateY(${place * this.rowHeight}px)` },
        onclick: (event) => this.click(event, href), onauxclick: (event) => this.click(event, href),
      }, h("div.cell.lead", { role: "rowheader" }, name), h("div.cell", { role: "gridcell" }, h(`span.status.${status}`, {}, status)), ...cells);
      if (place === this.active) row.classList.add("active");
      if (status !== "dead") setTimeout(() => this.fill(stamps, latent), this.first ? SETTLE_MS : 0);
      this.first = true;
      return row;
    }

    fill(stamps, latent) {
      if (stamps.isConnected) crops.glimpse(latent).then((found) => stamps.replaceChildren(...found)).catch(saetool.complain);
    }

    /** Follow the row's link from anywhere in the row, unless text is being selected. */
    click(event, href) {
      if (event.target.closest("a") || event.button > 1 || !getSelection().isCollapsed) return;
      if (event.button === 1 || event.ctrlKey || event.metaKey || event.shiftKey) window.open(href, "_blank", "noopener");
      else location.href = href;
    }

    open(place) {
      location.href = list.address(this.model.order[place], this.model.fragment(this.model.filters));
    }

    key(event) {
      if (this.head.contains(event.target) && ["ArrowLeft", "ArrowRight"].includes(event.key)) {
        const buttons = [...this.head.querySelectorAll("button")], next = buttons.indexOf(event.target) + (event.key === "ArrowLeft" ? -1 : 1);
        event.preventDefault();
        return buttons[next]?.focus();
      }
      const page = Math.max(1, Math.floor(this.view.clientHeight / this.rowHeight) - 2);
      const moves = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity };
      if (event.key === "Enter" && !event.target.closest("button, a")) return this.open(this.active);
      if (!(event.key in moves) || !this.model.order.length) return undefined;
      event.preventDefault();
      const last = this.model.order.length - 1;
      return this.activate(Math.min(Math.max(this.active + moves[event.key], 0), last));
    }

    activate(place) {
      this.rows.get(this.active)?.classList.remove("active");
      this.active = place;
      const top = place * this.rowHeight, room = this.view.clientHeight - this.rowHeight - this.head.offsetHeight;
      if (top < this.view.scrollTop) this.view.scrollTop = top;
      if (top > this.view.scrollTop + room) this.view.scrollTop = top - room;
      this.draw();
      this.rows.get(place)?.classList.add("active");
      this.view.setAttribute("aria-activedescendant", `row-${place}`);
    }
  }

  return { Table };
})();
