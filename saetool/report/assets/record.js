// One latent, cut out of its chunk: all that its page and a comparison show.
"use strict";

saetool.record = (() => {
  const { load, site, bit, json, offsets, heat } = saetool;
  const GROUPS = ["top", "interval", "random", "held_out"];

  /** Return a promise of a latent's record, null where it has no page. */
  async function of(latent) {
    const facts = await site.ready;
    if (!bit(facts.with_page, latent)) return null;
    return cut(facts, await load(`latents/${Math.floor(latent / facts.values.blocks.latents)}`), latent);
  }

  function cut(facts, chunk, latent) {
    const i = latent - chunk.values.start, size = chunk.values.stop - chunk.values.start;
    chunk.list = chunk.list || json(chunk.shown);
    chunk.said = chunk.said || json(chunk.words);
    chunk.maps = chunk.maps || (chunk.heat_counts && heat.maps(chunk));
    const image = (place) => site.facts(facts, chunk.list[place], chunk.box?.subarray(4 * place, 4 * place + 4));
    const starts = offsets(chunk.example_counts), examples = [];
    for (let e = starts[i]; e < starts[i + 1]; e++) {
      examples.push({
        group: GROUPS[chunk.group[e]], interval: chunk.interval[e], facts: image(chunk.image[e]), patch: chunk.patch[e],
        value: chunk.value[e], held_out: chunk.held_out[e] === 1, map: chunk.maps(chunk.map[e]),
      });
    }
    const part = (name) => {
      const array = chunk[name];
      return array ? array.subarray((i * array.length) / size, ((i + 1) * array.length) / size) : null;
    };
    const row = part("row"), columns = facts.values.columns;
    const number = (key) => row[columns.findIndex((column) => column.key === key)] ?? NaN;
    const text = (key) => facts.values.texts[key]?.[number(key)] ?? null;
    return {
      latent, examples, part, number, text, labels: labels(facts, chunk, i), words: chunk.said[i],
      scale: chunk.heat_scale ? chunk.heat_scale[i] : 0, status: facts.values.statuses[chunk.status[i]],
      of: (group) => examples.filter((example) => example.group === group),
      neighbors: (name) => neighbors(facts, chunk, `neighbors_${name}`, i, size),
    };
  }

  /** Return what there is on each class of each label: [{label, name, base, images, …}]. */
  function labels(facts, chunk, i) {
    const rows = [], pairs = facts.values.label_classes, starts = chunk.label_counts ? offsets(chunk.label_counts) : null;
    for (let r = starts ? starts[i] : 0; starts && r < starts[i + 1]; r++) {
      const [label, name] = pairs[chunk.label_class[r]], known = facts.values.labels.find((one) => one.name === label);
      const at = (key) => (chunk[`label_${key}`] ? chunk[`label_${key}`][r] : NaN);
      rows.push({ label, name, base: known?.shares[(known.classes ?? []).indexOf(name)] ?? NaN, images: at("images"), firing: at("firing_images"),
        auroc: at("auroc"), low: at("auroc_low"), high: at("auroc_high"),
        unseen: at("held_out_auroc"), unseenLow: at("held_out_low"), unseenHigh: at("held_out_high"), precision: at("average_precision"), mass: at("mass_share") });
    }
    return rows;
  }

  function neighbors(facts, chunk, name, i, size) {
    const ids = chunk[name], values = chunk[`${name}_value`], found = [];
    for (let k = ids ? (i * ids.length) / size : 0; ids && k < ((i + 1) * ids.length) / size; k++) {
      if (ids[k] >= 0) found.push({ latent: ids[k], value: values[k], crop: saetool.crops.at(facts, chunk, k, `${name}_`) });
    }
    return found;
  }

  /** Return the cosine of two records' directions, NaN where there are none. */
  function cosine(a, b) {
    const x = a.part("decoder_directions"), y = b.part("decoder_directions");
    if (!x || !y) return NaN;
    let xy = 0, xx = 0, yy = 0;
    for (let k = 0; k < x.length; k++) {
      xy += x[k] * y[k];
      xx += x[k] * x[k];
      yy += y[k] * y[k];
    }
    return xx && yy ? xy / Math.sqrt(xx * yy) : NaN;
  }

  /** Return on how many sample images both fire, and one only: {both, onlyA, onlyB, jaccard}; null where it is not known. */
  function overlap(a, b) {
    const x = a.part("fires"), y = b.part("fires");
    if (!x || !y) return null;
    const count = (byte) => {
      let ones = 0;
      for (let rest = byte; rest; rest &= rest - 1) ones++;
      return ones;
    };
    let both = 0, onlyA = 0, onlyB = 0;
    for (let k = 0; k < x.length; k++) {
      both += count(x[k] & y[k]);
      onlyA += count(x[k] & ~y[k]);
      onlyB += count(y[k] & ~x[k]);
    }
    return { both, onlyA, onlyB, jaccard: both + onlyA + onlyB ? both / (both + onlyA + onlyB) : NaN };
  }

  /** Say whether a latent fires on an image, null where the sample does not hold the image. */
  function fires(facts, one, image) {
    const bits = one.part("fires"), sample = facts.sample_images;
    const place = sample ? sample.indexOf(image) : image;
    return !bits || place < 0 ? null : bit(bits, place);
  }

  /** Return the crop of an example. */
  const crop = ({ facts, patch }) => ({ image: facts.row, patch, box: facts.box });

  return { of, cosine, overlap, fires, crop };
})();
