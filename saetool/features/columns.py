"""Every column of the tables of a features artifact; `scripts/tables_page.py` makes `docs/tables.md` from this.

A line declares a column: name | type | unit | definition, which may go on in lines that begin with a space.
"""

from dataclasses import dataclass
from typing import Any

import pyarrow as pa


@dataclass(frozen=True)
class Column:
    """One column; `type` is an Arrow type's name, `unit` "" for counts, names and ratios."""

    name: str
    type: str
    unit: str
    definition: str

    @property
    def arrow(self) -> pa.DataType:
        return pa.type_for_alias(self.type)


def declared(text: str) -> list[tuple[Any, ...]]:
    """Return what each line declares, parts between bars; a line that begins with a space belongs to the one before."""
    lines = text.strip().replace("\n ", " ").splitlines()
    return [tuple(" ".join(part.split()) for part in line.split("|")) for line in lines]


def _columns(text: str) -> tuple[Column, ...]:
    return tuple(Column(*parts) for parts in declared(text))


LATENTS = _columns("""
latent | int32 || Number of the latent; row i is latent i.
status | string || dead: never fired on the whole store; rare: token_frequency < rare_below; dense: token_frequency >
    dense_above; else ok.
token_count | int64 | tokens | Tokens on which it fires. A latent fires on a token when its code there is stored and
    positive.
token_frequency | double || token_count / all tokens.
image_count | int64 | images | Images with at least one firing token.
image_frequency | double || image_count / all images.
held_out_token_count | int64 | tokens | Firing tokens in images held out of training.
silent_on_held_out | bool || Whether held_out_token_count is 0.
max | float | activation | Largest activation; null when dead.
mean_firing | double | activation | Mean over the tokens on which it fires; null when dead.
mean | double | activation | Mean over all tokens, zeros included.
spatial_entropy | double || Entropy of its mean activation over positions, divided by ln(positions): 0 one position, 1
    all alike; null when dead or with one position.
encoder_decoder_cosine | float || Cosine of its encoder and decoder directions; null where the family has none.
decoder_norm | float | raw units / activation | Length of its decoder direction in raw units; null as above.
neighbor_similarity | float || Largest decoder cosine with another latent; null where there is none.
coactivation_similarity | float || Largest Jaccard index with another latent over images on which they fire; null
    where it fires with none.
monosemanticity | double || Mean cosine of embeddings (cache.embedding, index.embedding_layer or index.embeddings) of
    pairs of images, weighted by the product of the latent's min–max scaled image maxima (Pach et al. 2025); null
    without embeddings or with fewer than two images of positive weight.
monosemanticity_excess | double || That score with s_ij − r_i − r_j + c in place of the cosine s_ij, where r_i is
    image i's mean cosine with all others and c that of all pairs: 0 on average when the activations are dealt to
    random images. Null as above and with fewer than four images.
monosemanticity_spread | double || Standard deviation of monosemanticity_excess over all ways to deal the same
    activations to the images (Mantel 1967); null as above.
top_excess | double || Mean of s_ij − r_i − r_j + c over pairs of its `top` images that training saw; null as above.
""")

LABELED = _columns("""
{label}.best_class | string || Class with the largest train_auroc, the first of equals; null when dead or undefined. A
    column of numbers has two classes, up to and above its median.
{label}.auroc | double || AUROC of the best class over all images (see label_statistics).
{label}.held_out_auroc | double || AUROC of the best class over held-out images alone, which did not choose it; null
    where they lack the class or others.
{label}.average_precision | double || Average precision of the best class.
{label}.p_value | double || p_value of the best class (see label_statistics).
{label}.q_value | double || That after Benjamini–Hochberg over all latents and classes of the label.
{label}.purity | double || Largest share of its mass in one class (mass: sum of activations over tokens).
{label}.entropy | double || Entropy of those shares, divided by ln(number of classes).
{label}.spearman | double || Spearman's correlation of image maxima with the number; null for categories.
""")

LABEL_STATISTICS = _columns("""
latent | int32 || Number of the latent; one that fires on no labeled image has no rows.
label | string || Name of the label column.
class | string || Class; a latent has rows for its `index.label_classes` classes of largest train_auroc.
images | int64 | images | Labeled images of the class.
firing_images | int64 | images | Of these, images on which the latent fires.
auroc | double || Chance that the latent's maximum is larger on an image of the class than on another labeled image,
    ties counted half; over all images, those that training saw among them; null where a side is empty.
auroc_low | double || Lower end of its 95 % interval (DeLong 1988, normal approximation; where all
    of a class stand alike to all others, an AUROC of 0 or 1 or a tie of all, it reaches as far as Clopper–Pearson's of
    as many pairs as the smaller side has images); null with fewer than two images a side. Where images form groups
    (images.group), Obuchowski's (1997), t distribution, and groups are counted.
auroc_high | double || Upper end of its 95 % interval.
train_auroc | double || AUROC over training images alone, by which latents and classes are chosen.
held_out_auroc | double || AUROC over held-out images alone: what was chosen, scored.
held_out_low | double || Lower end of its 95 % interval, as auroc_low.
held_out_high | double || Upper end of its 95 % interval.
p_value | double || Mann & Whitney's test that AUROC is one half, over all images, ties corrected (training saw no
    labels). Where images form groups, t by the larger of its error and Obuchowski's.
q_value | double || p_value after Benjamini–Hochberg over all latents and classes of the label.
average_precision | double || Average precision of the image maximum for the class (scikit-learn's).
mass_share | double || Share of the latent's activation, summed over tokens of labeled images, in the class.
""")

EXAMPLES = _columns("""
latent | int32 || Number of the latent. Rows are sorted by latent, group, interval, rank.
group | string || top: the images with the largest maximum (or mean, index.top_by); interval: drawn from those whose
    maximum lies in one part of (0, max]; random: drawn from all on which it fires; held_out: the 8 strongest, as in
    top, among images held out of training.
interval | int8 || Which part, 0 the lowest: (max·i/n, max·(i+1)/n]; null in other groups.
rank | int16 || Place in the group, from 0. Drawn images are in the order of hash(seed, latent, file).
image | int32 || Row of images.parquet. A group holds an image once; ties go to the lower row.
patch | int32 || Row-major index of the strongest patch, the first of equals; null without a grid.
value | float | activation | The latent's maximum over the image's tokens.
held_out | bool || Whether the image was held out of training.
heat | binary | heat_scale / 255 | One byte a patch, row by row: activation / heat_scale · 255, rounded, at least 1
    where it fires; null without a grid.
heat_scale | float | activation | The latent's max.
""")

IMAGES = _columns("""
image | int32 || Row number, the image's id in every table.
path | string || Path below the source's root, or its place in the source.
width | int32 | pixels | Width of the upright image.
height | int32 | pixels | Height of the upright image.
digest | string || Digest of the image's file.
held_out | bool || Whether it was held out of training.
""")

TABLES = {
    "latents.parquet": LATENTS,
    "label_statistics.parquet": LABEL_STATISTICS,
    "examples.parquet": EXAMPLES,
    "images.parquet": IMAGES,
}

IMAGE_LATENTS = _columns("""
image | int32 || Row of images.parquet; rows are sorted by image, then latent.
latent | int32 || Latent that fires on the image; pairs of which it does not have no row.
max | float | activation | Its largest activation on the image's tokens.
sum | double | activation | Sum of its activations over the image's tokens.
count | int32 | tokens | Tokens of the image on which it fires.
""")

PATCH_LATENTS = _columns("""
image | int32 || Row of images.parquet; rows are sorted by image, then patch, then latent.
patch | int32 || The token's place among those of its image: the patch, row by row.
latent | int32 || Latent that fires on the token; pairs of which it does not have no row.
value | float | activation | Its activation there.
""")

WRITTEN = {"rows = images": IMAGE_LATENTS, "rows = patches": PATCH_LATENTS}
"""The tables that `saetool table` writes."""
_TENSORS = {
    "tensors.safetensors": """
histogram | int64 [n_latents, bins] | Firing tokens by activation. The outermost bins also count what lies beyond
    2^-24 and 2^24; empty bins at both ends are cut off.
histogram_edges | float32 [bins + 1] | Shared edges, four bins a factor of two; bin i holds activations in (edges[i],
    edges[i + 1]].
spatial_profile | float32 [n_latents, tokens] | Mean activation at each position over all images.
neighbors_decoder | int32 [n_latents, k] | Latents with the largest decoder cosine, −1 pads.
neighbors_decoder_value | float32 [n_latents, k] | Those cosines.
neighbors_coactivation | int32 [n_latents, k] | Latents with the largest Jaccard index over images, −1 pads.
neighbors_coactivation_value | float32 [n_latents, k] | Those indices.
decoder_directions | int8 [n_latents, d_in] | Decoder directions, each in 127ths of its largest magnitude: cosines of
    any two, to about .003. Not there where the family has none.
sample_images | int32 [k] | Images on which `fires` tells who fires: all, or of more than 4,096 those with the
    smallest seeded hashes.
fires | uint8 [n_latents, ceil(k / 8)] | A bit a sample image, the first in the lowest bit: whether the latent fires
    on it.
""",
    "patches.safetensors": """
latents | int32 [images, tokens, k] | The strongest latents of each token, falling, −1 pads; ties go to the lowest
    latent.
values | float32 [images, tokens, k] | Their activations, 0 pads.
""",
}
TENSORS = [(file, *parts) for file, text in _TENSORS.items() for parts in declared(text)]
"""File, name, type and shape, definition."""
