"""Which latents are alike: by the direction they write (decoder cosine), by the images they fire on (Jaccard).

And what it takes to compare any two of them later: on which images each fires, and its direction, both small.
"""

import itertools
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from jaxtyping import Float, Int, Int8
from torch import Tensor

from saetool import progress
from saetool.features.maxima import RECORD, Maxima
from saetool.features.spill import Spill
from saetool.statistics import unit_rows

BLOCK = 1024
"""Latents compared with all others at a time."""
_CELLS = 1 << 25
"""Cells of the images × latents matrix held at a time (128 MiB)."""
_GPU_CELLS = 1 << 30
"""Pairs of latents counted in one reading of the spill on a GPU (4 GiB): all pairs of 32,768."""
SAMPLE = 4096
"""Images on which is kept who fires: half a kilobyte a latent, whatever the number of images."""
_STEPS = 127
_LATENT, _IMAGE = RECORD.names.index("latent"), RECORD.names.index("image")  # pyright: ignore[reportOptionalMemberAccess]

Neighbors = tuple[Int[Tensor, "n_latents k"], Float[Tensor, "n_latents k"]]
"""Latents (int32, −1 pads) and similarities (0 pads), most similar first; ties go to the lowest latent."""


def by_decoder(directions: Float[Tensor, "n_latents d_in"], k: int) -> Neighbors:
    """Return each latent's neighbors by cosine of decoder directions; a latent without direction has none."""
    unit = unit_rows(directions)
    without = (unit == 0).all(1)
    found = []
    for start in range(0, len(unit), BLOCK):
        cosine = (unit[start : start + BLOCK] @ unit.T).clamp_(-1, 1)
        cosine[:, without] = -torch.inf
        cosine[without[start : start + BLOCK]] = -torch.inf
        found.append(largest_in_rows(_without_self(cosine, start), k))
    return _join(found)


def by_coactivation(
    spill: Spill, image_counts: Int[np.ndarray, "n_latents"], k: int, device: torch.device
) -> Neighbors:
    """Return each latent's neighbors by Jaccard index of the sets of images they fire on; only those above 0."""
    alive = np.flatnonzero(image_counts > 0)
    place = torch.full((len(image_counts),), -1, dtype=torch.int64)
    place[alive] = torch.arange(len(alive))
    place = place.to(device)
    counts = torch.from_numpy(image_counts[alive]).to(device).float()
    latents = torch.full((len(image_counts), k), -1, dtype=torch.int32)
    values = torch.zeros(len(image_counts), k)

    def matrices() -> Iterator[Tensor]:
        return _firing_matrices(spill, place, len(alive), device)

    whole = list(itertools.islice(matrices(), 2))
    if len(whole) > 1:
        whole = None
    with progress.bar("co-activation", len(alive), "latents") as advance:
        step = _latents_at_once(len(alive), device)
        for first in range(0, len(alive), step):
            block = range(first, min(first + step, len(alive)))
            # A small store is one matrix, made once; of a large one that much is held, and made again for each block.
            together = _counts_together(matrices() if whole is None else whole, len(alive), block, device)
            for start in range(first, block.stop, BLOCK):
                both = together[start - first : start - first + BLOCK]
                either = (counts[start : start + len(both), None] + counts).sub_(both)
                jaccard = both.div_(either).masked_fill_(both == 0, -torch.inf)
                column, value = largest_in_rows(_without_self(jaccard, start), k)
                rows = alive[start : start + len(both)]
                known = column.cpu().long()
                latents[rows] = torch.where(known < 0, -1, torch.from_numpy(alive)[known.clamp_min(0)]).int()
                values[rows] = value.cpu()
                advance(len(both))
    return latents, values


def _latents_at_once(n: int, device: torch.device) -> int:
    """Return for how many latents images are counted in one reading of the spill: the counts are the same."""
    if device.type != "cuda":
        return BLOCK
    free, _ = torch.cuda.mem_get_info(device)
    return max(BLOCK, min(_GPU_CELLS, free // 8) // max(n, 1))  # half of what is free, four bytes each


def _counts_together(matrices: Iterable[Tensor], n: int, block: range, device: torch.device) -> Tensor:
    """Return the number of images on which latents of `block` and each of `n` fire together (exact below 2^24)."""
    both = torch.zeros(len(block), n, device=device)
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True  # 0 and 1 are exact in it, and sums are float32's
    try:
        for fires in matrices:
            both.addmm_(fires[:, block.start : block.stop].T, fires)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    return both


def _firing_matrices(spill: Spill, place: Tensor, n: int, device: torch.device) -> Iterator[Tensor]:
    """Yield 0/1 matrices [images, n] that together cover all images on which anything fires."""
    waiting: list[np.ndarray] = []
    images = 0
    for records in spill.chunks():
        waiting.append(records)
        if len(records):
            images += int(records["image"].max() - records["image"].min()) + 1
        if images * n >= _CELLS:
            yield _firing_matrix(waiting, place, n, device)
            waiting, images = [], 0
    if waiting:
        yield _firing_matrix(waiting, place, n, device)


def _firing_matrix(chunks: list[np.ndarray], place: Tensor, n: int, device: torch.device) -> Tensor:
    """`place` [n_latents] is a latent's column."""
    records = np.concatenate(chunks)
    if len(records) == 0:
        return torch.zeros(0, n, device=device)
    first, last = int(records["image"].min()), int(records["image"].max())
    words = torch.from_numpy(records.view(np.int32).reshape(len(records), -1)).to(device)
    latent, image = words[:, _LATENT].long(), words[:, _IMAGE].long() - first
    fires = torch.zeros(last - first + 1, n, device=device)
    fires[image, place[latent]] = 1
    return fires


def _without_self(similarity: Tensor, start: int) -> Tensor:
    rows = torch.arange(len(similarity), device=similarity.device)
    similarity[rows, rows + start] = -torch.inf
    return similarity


def _join(blocks: list[tuple[Tensor, Tensor]]) -> Neighbors:
    return torch.cat([column for column, _ in blocks]).cpu(), torch.cat([value for _, value in blocks]).cpu()


def largest_in_rows(
    values: Float[Tensor, "rows columns"], k: int
) -> tuple[Int[Tensor, "rows k"], Float[Tensor, "rows k"]]:
    """Return columns (int32, −1 pads) and values (0 pads) of each row's k largest finite entries, falling.

    Ties go to the lowest column, for any way of computing.
    """
    columns = values.shape[1]
    kept, wide = min(k, columns), min(2 * k, columns)
    # Of equal entries `topk` takes any: what lies above the last one taken is known whole, and is put in order.
    value, column = values.float().topk(wide, dim=1)
    order = column.argsort(dim=1)
    value, column = value.gather(1, order), column.gather(1, order)
    order = value.argsort(dim=1, descending=True, stable=True)
    value, column = value.gather(1, order), column.gather(1, order)
    cut = value[:, kept - 1]
    unknown = (cut == value[:, -1]) & cut.isfinite() if wide < columns else torch.zeros_like(cut, dtype=torch.bool)
    value, column = value[:, :kept], column[:, :kept]
    if bool(unknown.any()):
        column[unknown] = _by_packed_keys(values[unknown], kept)
        value[unknown] = values[unknown].float().gather(1, column[unknown])
    pad = (len(values), k - kept)
    column = torch.where(value.isfinite(), column, -1).int()
    value = torch.where(column < 0, 0.0, value)
    return torch.cat([column, column.new_full(pad, -1)], 1), torch.cat([value, value.new_zeros(pad)], 1)


def _by_packed_keys(values: Float[Tensor, "rows columns"], k: int) -> Int[Tensor, "rows k"]:
    """Return the columns of each row's k largest entries, by one key of value and column that has no ties."""
    columns = values.shape[1]
    bits = (values.float() + 0.0).view(torch.int32)  # −0 becomes 0: they are equal
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # negative floats fall as their bits rise
    packed = (ordered.long() << 32) | (columns - 1 - torch.arange(columns, device=values.device))
    return columns - 1 - (packed.topk(k, dim=1).values & 0xFFFFFFFF)


def sample_of(hashes: Int[Tensor, "images"]) -> np.ndarray:
    """Return the rows of the images kept, int32 in rising order: all, or the `SAMPLE` of smallest seeded hash."""
    return np.sort(np.argsort(hashes.numpy().view(np.uint64), kind="stable")[:SAMPLE]).astype(np.int32)


def firing_bits(maxima: Maxima, sample: np.ndarray, images: int) -> np.ndarray:
    """Return on which images of the sample each latent of a block fires, uint8 [latents, ceil(sample / 8)]."""
    width = -(-len(sample) // 8)
    place = np.full(images, -1, np.int64)
    place[sample] = np.arange(len(sample))
    at, latent = place[maxima.image.cpu().numpy()], maxima.latent.cpu().numpy()
    known = at >= 0
    bits = np.zeros(maxima.n_latents * width, np.uint8)
    np.bitwise_or.at(bits, latent[known] * width + at[known] // 8, np.uint8(1) << (at[known] % 8).astype(np.uint8))
    return bits.reshape(maxima.n_latents, width)


def small_directions(directions: Float[Tensor, "n_latents d_in"]) -> Int8[Tensor, "n_latents d_in"]:
    """Return directions in `_STEPS` steps of each one's largest magnitude; a latent without direction stays 0."""
    unit = unit_rows(directions).cpu()
    largest = unit.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    return (unit / largest * _STEPS).round().to(torch.int8)
