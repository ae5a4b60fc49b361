// Numbers as people type them: 0.01, 0,01, 1,000, 1%, 1e-3; what is none is said, never passed over.
"use strict";

saetool.numbers = (() => {
  const PERCENT = new Set(["share"]);

  /**
   * Return {value} of typed text for a column of some form, {} for empty text, or {error} that says what is wrong. A
   * column in percent takes its numbers in percent, with or without the sign; other columns take a sign as a hundredth.
   */
  function read(text, form) {
    let typed = text.trim().replace(/\u2212/g, "-").replace(/[\s\u00a0\u202f]/g, "");
    if (!typed) return {};
    const signed = typed.endsWith("%");
    if (signed) typed = typed.slice(0, -1);
    if (/^[-+]?[1-9]\d{0,2}(,\d{3})+(\.\d+)?$/.test(typed)) typed = typed.replaceAll(",", "");
    else if (/^[-+]?\d*,\d+(e[-+]?\d+)?$/i.test(typed)) typed = typed.replace(",", ".");
    if (!/^[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$/i.test(typed)) return { error: `“${text.trim()}” is not a number: write 0.01, 1% or 1e-3.` };
    if (signed && form === "count") return { error: `“${text.trim()}”: this column counts, it has no percent.` };
    return { value: Number(typed) / (signed || PERCENT.has(form) ? 100 : 1) };
  }

  return { read, isPercent: (form) => PERCENT.has(form) };
})();
