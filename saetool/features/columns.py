"""Every column of the tables of a features artifact; `scripts/tables_page.py` makes `docs/tables.md` from this."""

from dataclasses import dataclass

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
        """The Arrow type."""
        return pa.type_for_alias(self.type)


_FIRES = "A latent fires on a token when its code there is stored and positive"

LATENTS = (
    Column("latent", "int32", "", "Number of the latent; row i is latent i."),
    Column(
        "status",
        "string",
        "",
        "dead: never fired on the whole store; rare: token_frequency < rare_below; "
        "dense: token_frequency > dense_above; else ok.",
    ),
    Column("token_count", "int64", "tokens", f"Tokens on which it fires. {_FIRES}."),
    Column("token_frequency", "double", "", "token_count / all tokens."),
    Column("image_count", "int64", "images", "Images with at least one firing token."),
    Column("image_frequency", "double", "", "image_count / all images."),
    Column("held_out_token_count", "int64", "tokens", "Firing tokens in images held out of training."),
    Column("silent_on_held_out", "bool", "", "Whether held_out_token_count is 0."),
    Column("max", "float", "activation", "Largest activation; null when dead."),
    Column("mean_firing", "double", "activation", "Mean over the tokens on which it fires; null when dead."),
    Column("mean", "double", "activation", "Mean over all tokens, zeros included."),
    Column(
        "spatial_entropy",
        "double",
        "",
        "Entropy of its mean activation over positions, divided by ln(positions): 0 one "
        "position, 1 all alike; null when dead or with one position.",
    ),
    Column(
        "encoder_decoder_cosine",
        "float",
        "",
        "Cosine of its encoder and decoder directions; null where the family has none.",
    ),
    Column(
        "decoder_norm",
        "float",
        "raw units / activation",
        "Length of its decoder direction in raw units; null as above.",
    ),
    Column("neighbor_similarity", "float", "", "Largest decoder cosine with another latent; null where there is none."),
    Column(
        "coactivation_similarity",
        "float",
        "",
        "Largest Jaccard index with another latent over images on which they fire; null where it fires with none.",
    ),
    Column(
        "monosemanticity",
        "double",
        "",
        "Mean cosine of embeddings (cache.embedding, index.embedding_layer or index.embeddings) of pairs of images, "
        "weighted by the product of the latent's min–max scaled image maxima (Pach et al. 2025); null without "
        "embeddings or with fewer than two images of positive weight.",
    ),
    Column(
        "monosemanticity_excess",
        "double",
        "",
        "That score with s_ij − r_i − r_j + c in place of the cosine s_ij, where r_i is image i's mean cosine with all "
        "others and c that of all pairs: 0 on average when the activations are dealt to random images. Null as above "
        "and with fewer than four images.",
    ),
    Column(
        "monosemanticity_spread",
        "double",
        "",
        "Standard deviation of monosemanticity_excess over all ways to deal the same activations to the images "
        "(Mantel 1967); null as above.",
    ),
    Column(
        "top_excess",
        "double",
        "",
        "Mean of s_ij − r_i − r_j + c over pairs of its `top` images that training saw; null as above.",
    ),
)

LABELED = (
    Column(
        "{label}.best_class",
        "string",
        "",
        "Class with the largest train_auroc, the first of equals; null when dead or "
        "undefined. A column of numbers has two classes, up to and above its median.",
    ),
    Column("{label}.auroc", "double", "", "AUROC of the best class over all images (see label_statistics)."),
    Column(
        "{label}.held_out_auroc",
        "double",
        "",
        "AUROC of the best class over held-out images alone, which did not choose it; null where they lack the class "
        "or others.",
    ),
    Column("{label}.average_precision", "double", "", "Average precision of the best class."),
    Column("{label}.p_value", "double", "", "p_value of the best class (see label_statistics)."),
    Column("{label}.q_value", "double", "", "That after Benjamini–Hochberg over all latents and classes of the label."),
    Column(
        "{label}.purity", "double", "", "Largest share of its mass in one class (mass: sum of activations over tokens)."
    ),
    Column("{label}.entropy", "double", "", "Entropy of those shares, divided by ln(number of classes)."),
    Column(
        "{label}.spearman", "double", "", "Spearman's correlation of image maxima with the number; null for categories."
    ),
)

LABEL_STATISTICS = (
    Column("latent", "int32", "", "Number of the latent; one that fires on no labeled image has no rows."),
    Column("label", "string", "", "Name of the label column."),
    Column(
        "class", "string", "", "Class; a latent has rows for its `index.label_classes` classes of largest train_auroc."
    ),
    Column("images", "int64", "images", "Labeled images of the class."),
    Column("firing_images", "int64", "images", "Of these, images on which the latent fires."),
    Column(
        "auroc",
        "double",
        "",
        "Chance that the latent's maximum is larger on an image of the class than on another "
        "labeled image, ties counted half; over all images, those that training saw among them; null where a side is "
        "empty.",
    ),
    Column(
        "auroc_low",
        "double",
        "",
        "Lower end of its 95 % interval (DeLong 1988, normal approximation; of an AUROC of 0 or 1 Clopper–Pearson's "
        "for as many pairs as the smaller side has images); null with fewer than two images a side. Where images form "
        "groups (images.group), Obuchowski's (1997), t distribution, and groups are counted.",
    ),
    Column("auroc_high", "double", "", "Upper end of its 95 % interval."),
    Column("train_auroc", "double", "", "AUROC over training images alone, by which latents and classes are chosen."),
    Column("held_out_auroc", "double", "", "AUROC over held-out images alone: what was chosen, scored."),
    Column("held_out_low", "double", "", "Lower end of its 95 % interval, as auroc_low."),
    Column("held_out_high", "double", "", "Upper end of its 95 % interval."),
    Column(
        "p_value",
        "double",
        "",
        "Mann & Whitney's test that AUROC is one half, over all images, ties corrected (training saw no labels). Where "
        "images form groups, t by the larger of its error and Obuchowski's.",
    ),
    Column("q_value", "double", "", "p_value after Benjamini–Hochberg over all latents and classes of the label."),
    Column("average_precision", "double", "", "Average precision of the image maximum for the class (scikit-learn's)."),
    Column(
        "mass_share",
        "double",
        "",
        "Share of the latent's activation, summed over tokens of labeled images, in the class.",
    ),
)

EXAMPLES = (
    Column("latent", "int32", "", "Number of the latent. Rows are sorted by latent, group, interval, rank."),
    Column(
        "group",
        "string",
        "",
        "top: the images with the largest maximum (or mean, index.top_by); interval: drawn from "
        "those whose maximum lies in one part of (0, max]; random: drawn from all on which it fires; held_out: the 8 "
        "strongest, as in top, among images held out of training.",
    ),
    Column("interval", "int8", "", "Which part, 0 the lowest: (max·i/n, max·(i+1)/n]; null in other groups."),
    Column(
        "rank", "int16", "", "Place in the group, from 0. Drawn images are in the order of hash(seed, latent, file)."
    ),
    Column("image", "int32", "", "Row of images.parquet. A group holds an image once; ties go to the lower row."),
    Column("patch", "int32", "", "Row-major index of the strongest patch, the first of equals; null without a grid."),
    Column("value", "float", "activation", "The latent's maximum over the image's tokens."),
    Column("held_out", "bool", "", "Whether the image was held out of training."),
    Column(
        "heat",
        "binary",
        "heat_scale / 255",
        "One byte a patch, row by row: activation / heat_scale · 255, rounded, at "
        "least 1 where it fires; null without a grid.",
    ),
    Column("heat_scale", "float", "activation", "The latent's max."),
)

IMAGES = (
    Column("image", "int32", "", "Row number, the image's id in every table."),
    Column("path", "string", "", "Path below the source's root, or its place in the source."),
    Column("width", "int32", "pixels", "Width of the upright image."),
    Column("height", "int32", "pixels", "Height of the upright image."),
    Column("digest", "string", "", "Digest of the image's file."),
    Column("held_out", "bool", "", "Whether it was held out of training."),
)

TABLES = {
    "latents.parquet": LATENTS,
    "label_statistics.parquet": LABEL_STATISTICS,
    "examples.parquet": EXAMPLES,
    "images.parquet": IMAGES,
}

_ROW = "rows are sorted by image"
IMAGE_LATENTS = (
    Column("image", "int32", "", f"Row of images.parquet; {_ROW}, then latent."),
    Column("latent", "int32", "", "Latent that fires on the image; pairs of which it does not have no row."),
    Column("max", "float", "activation", "Its largest activation on the image's tokens."),
    Column("sum", "double", "activation", "Sum of its activations over the image's tokens."),
    Column("count", "int32", "tokens", "Tokens of the image on which it fires."),
)

PATCH_LATENTS = (
    Column("image", "int32", "", f"Row of images.parquet; {_ROW}, then patch, then latent."),
    Column("patch", "int32", "", "The token's place among those of its image: the patch, row by row."),
    Column("latent", "int32", "", "Latent that fires on the token; pairs of which it does not have no row."),
    Column("value", "float", "activation", "Its activation there."),
)

WRITTEN = {"rows = images": IMAGE_LATENTS, "rows = patches": PATCH_LATENTS}
"""The tables that `saetool table` writes."""

TENSORS = (
    (
        "tensors.safetensors",
        "histogram",
        "int64 [n_latents, bins]",
        "Firing tokens by activation. The outermost bins "
        "also count what lies beyond 2^-24 and 2^24; empty bins at both ends are cut off.",
    ),
    (
        "tensors.safetensors",
        "histogram_edges",
        "float32 [bins + 1]",
        "Shared edges, four bins a factor of two; bin i holds activations in (edges[i], edges[i + 1]].",
    ),
    (
        "tensors.safetensors",
        "spatial_profile",
        "float32 [n_latents, tokens]",
        "Mean activation at each position over all images.",
    ),
    (
        "tensors.safetensors",
        "neighbors_decoder",
        "int32 [n_latents, k]",
        "Latents with the largest decoder cosine, −1 pads.",
    ),
    ("tensors.safetensors", "neighbors_decoder_value", "float32 [n_latents, k]", "Those cosines."),
    (
        "tensors.safetensors",
        "neighbors_coactivation",
        "int32 [n_latents, k]",
        "Latents with the largest Jaccard index over images, −1 pads.",
    ),
    ("tensors.safetensors", "neighbors_coactivation_value", "float32 [n_latents, k]", "Those indices."),
    (
        "tensors.safetensors",
        "decoder_directions",
        "int8 [n_latents, d_in]",
        "Decoder directions, each in 127ths of its largest magnitude: cosines of any two, to about .003. Not there "
        "where the family has none.",
    ),
    (
        "tensors.safetensors",
        "sample_images",
        "int32 [k]",
        "Images on which `fires` tells who fires: all, or of more than 4,096 those with the smallest seeded hashes.",
    ),
    (
        "tensors.safetensors",
        "fires",
        "uint8 [n_latents, ceil(k / 8)]",
        "A bit a sample image, the first in the lowest bit: whether the latent fires on it.",
    ),
    (
        "patches.safetensors",
        "latents",
        "int32 [images, tokens, k]",
        "The strongest latents of each token, falling, −1 pads; ties go to the lowest latent.",
    ),
    ("patches.safetensors", "values", "float32 [images, tokens, k]", "Their activations, 0 pads."),
)
