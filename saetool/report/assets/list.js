// The list that one came from: its filters travel in the address, its order in the session or, failing that, from the table.
"use strict";

saetool.list = (() => {
  const { load, site, bit } = saetool;
  const key = (fragment) => `saetool ${location.pathname.replace(/[^/]*$/, "")} ${fragment}`;

  /** Keep the order of a list for the pages that it leads to. */
  function keep(fragment, order) {
    try {
      sessionStorage.setItem(key(fragment), order.join(","));
    } catch {
      // Without storage, or with a full one, the next page asks the table.
    }
  }

  function kept(fragment) {
    try {
      const text = sessionStorage.getItem(key(fragment));
      return text ? Int32Array.from(text.split(","), Number) : null;
    } catch {
      return null;
    }
  }

  /** Return the address of a latent within a list; the list of all latents by number needs no name. */
  const address = (latent, fragment) => `latent.html#latent=${latent}${fragment ? `&list=${encodeURIComponent(fragment)}` : ""}`;

  /** Return a promise of the latents of a list, in order; null is the list of all living latents by number. */
  async function order(fragment) {
    if (!fragment) return null;
    const found = kept(fragment);
    if (found) return found;
    const model = new saetool.model.Model(await site.ready, await load("table"), fragment);
    keep(fragment, model.order);
    return model.order;
  }

  /** Return {place, total, previous, next} of a latent in a list. */
  function around(facts, latent, list) {
    if (list) {
      const place = list.indexOf(latent), total = list.length;
      if (!total) return around(facts, latent, null);
      return { place, total, previous: list[(place - 1 + total) % total] ?? list[0], next: list[(place + 1) % total] };
    }
    const n = facts.values.n_latents;
    const step = (direction) => {
      for (let k = 1; k <= n; k++) {
        const next = (latent + direction * k + n * k) % n;
        if (bit(facts.live, next) && bit(facts.with_page, next)) return next;
      }
      return Math.min(Math.max(latent, 0), n - 1);
    };
    return { place: null, total: n, previous: step(-1), next: step(1) };
  }

  /** Say whether a click is a plain one, which a page may handle itself; all others are the browser's. */
  const plain = (event) => event.button === 0 && !event.ctrlKey && !event.metaKey && !event.shiftKey && !event.altKey;

  /** Make a link replace the present entry of the history: a step through a list does not fill it. */
  function replacing(link) {
    link.addEventListener("click", (event) => {
      if (!plain(event) || !link.hasAttribute("href")) return;
      event.preventDefault();
      location.replace(link.href);
    });
  }

  return { keep, order, address, around, plain, replacing };
})();
