"""The columns of the table of latents: how each is named, explained and formatted, and its numbers as arrays.

A line declares a column: key | title | form | help.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from saetool.features.columns import declared

Form = Literal["count", "share", "value", "unit", "signed", "probability", "text", "flag"]


@dataclass(frozen=True)
class Column:
    """One column: its key in `latents.parquet`, a short title, how to print it and what it means."""

    key: str
    title: str
    form: Form
    help: str
    label: str | None = None
    """The label column that it speaks of."""


STATUSES = ["dead", "rare", "ok", "dense"]


def _columns(text: str) -> tuple[Column, ...]:
    return tuple(Column(*parts) for parts in declared(text))


PLAIN = _columns("""
token_frequency | Frequency | share | Share of all tokens on which the latent fires
image_frequency | Images | share | Share of images with at least one firing token
max | Max | value | Largest activation in the whole store
mean_firing | Strength | value | Mean activation over the tokens on which the latent fires
spatial_entropy | Spread | unit | Entropy of the mean activation over positions: 1 is everywhere alike
monosemanticity_excess | Specificity | signed | How much more alike its images are than chance explains: the cosine of
    their embeddings, less what each of them has with all images; 0 is chance at any firing rate
monosemanticity_low | Specificity, low | signed | Specificity less two standard deviations of what dealing its
    activations to random images gives
monosemanticity | Raw specificity | unit | Monosemanticity as published: how alike its images are, without a baseline;
    all images of a set are alike
neighbor_similarity | Nearest | unit | Largest cosine with another latent's decoder direction
coactivation_similarity | Co-active | unit | Largest Jaccard overlap of firing images with another
encoder_decoder_cosine | Enc·dec | unit | Cosine between the latent's encoder and decoder directions
decoder_norm | Norm | value | Length of the decoder direction
mean | Mean | value | Mean activation over all tokens
token_count | Tokens | count | Tokens on which the latent fires
image_count | Image count | count | Images with at least one firing token
held_out_token_count | Held-out tokens | count | Firing tokens in images that training never saw
silent_on_held_out | Silent held out | flag | Never fires on images that training never saw
""")

OF_LABEL = _columns("""
best_class | Best class | text | Class that the latent tells apart best
auroc | AUROC | unit | Area under the ROC curve for the best class, by the image's largest activation
held_out_auroc | AUROC, held out | unit | The same over held-out images alone, which did not choose the class
auroc_low | AUROC, low | unit | Lower end of the 95 % interval of the best class's AUROC
average_precision | Avg. precision | unit | Average precision for the best class
purity | Purity | share | Largest share of one class in the latent's activation mass
base_rate | Base rate | share | Share of images that are of the best class: average precision by chance
entropy | Class entropy | unit | Entropy of the activation mass over classes
q_value | q | probability | Share of false discoveries at this threshold (Benjamini–Hochberg)
spearman | Spearman | unit | Rank correlation of the image's largest activation with the number
p_value | p | probability | Probability of so extreme a rank statistic by chance
""")


def columns_of(labels: list[dict], table: pa.Table) -> list[Column]:
    """Return the columns that `table` can show, label columns last; one without a single value is left out."""
    present = {name for name in table.column_names if table[name].null_count < table.num_rows}
    columns = [column for column in PLAIN if column.key in present]
    for label in labels:
        for column in OF_LABEL:
            key = f"{label['name']}.{column.key}"
            if key in present:
                columns.append(Column(key, column.title, column.form, column.help, label["name"]))
    return columns


def describe(columns: list[Column]) -> list[dict]:
    return [asdict(column) for column in columns]


def numbers(column: pa.ChunkedArray, real: type = np.float32) -> np.ndarray:
    """Return a column as int32, or `real` with NaN for null; whole numbers beyond int32 become float64."""
    kind = column.type
    if pa.types.is_boolean(kind):
        column, kind = column.cast(pa.int8()), pa.int8()
    if pa.types.is_integer(kind) and column.null_count == 0:
        values = column.to_numpy()
        fits = values.size == 0 or (values.min() >= -(2**31) and values.max() < 2**31)
        return values.astype(np.int32 if fits else np.float64)
    wide = pa.types.is_integer(kind) or pa.types.is_null(kind)
    return column.cast(pa.float64()).to_numpy(zero_copy_only=False).astype(np.float64 if wide else real)


def codes(column: pa.ChunkedArray) -> tuple[np.ndarray, list[str]]:
    """Return a column of text as numbers into a list of its distinct texts; null is −1."""
    values = column.to_pylist()
    texts = sorted({text for text in values if text is not None})
    return places(values, texts), texts


def places(values: list, among: Sequence[str]) -> np.ndarray:
    """Return where each value stands in a list, −1 for one that does not."""
    index = {value: i for i, value in enumerate(among)}
    return np.fromiter((index.get(value, -1) for value in values), np.int32, len(values))


def table_arrays(table: pa.Table, columns: list[Column]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return every column's numbers, and the texts that coded columns point into."""
    status = places(table["status"].to_pylist(), STATUSES)
    arrays: dict[str, np.ndarray] = {"status": status.astype(np.uint8)}
    texts: dict[str, Any] = {"status": STATUSES}
    for column in columns:
        if column.form == "text":
            arrays[column.key], texts[column.key] = codes(table[column.key].cast(pa.string()))
        else:
            kind = np.float64 if column.form == "probability" else np.float32  # float32 makes 0 of what is below 1e-45
            arrays[column.key] = numbers(table[column.key], kind)
    return arrays, texts
