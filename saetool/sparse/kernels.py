"""The two sparse kernels everything is made of, and the plain path where a build of torch lacks them.

`bag_sum` is `embedding_bag` (2–3 times faster here than a CSR product). `sampled` is `torch.sparse.sampled_addmm`,
which on CPU needs MKL: a probe at first use decides, and a gather serves the others.
"""

import warnings
from functools import cache

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from saetool.sparse import compiled
from saetool.sparse.support import Support

ENTRIES_AT_ONCE = 1024
"""Entries whose two vectors are held at once by the plain sampled product: they stay in cache."""


def bag_sum(
    index: Int[Tensor, "entries"],
    weights: Float[Tensor, "entries"],
    offsets: Int[Tensor, "bags_plus_one"],
    table: Float[Tensor, "rows d_in"],
) -> Float[Tensor, "bags d_in"]:
    """Return, for bag i, Σ over e from offsets[i] to offsets[i + 1] of weights[e] · table[index[e]]."""
    if index.numel() == 0:
        return table.new_zeros(offsets.numel() - 1, table.shape[1])
    return F.embedding_bag(index, table, offsets, mode="sum", per_sample_weights=weights, include_last_offset=True)


def sampled(
    left: Float[Tensor, "groups d_in"],
    offsets: Int[Tensor, "groups_plus_one"],
    right: Float[Tensor, "rows d_in"],
    index: Int[Tensor, "entries"],
) -> Float[Tensor, "entries"]:
    """Return left[g] · right[index[e]] for every entry e, where g is the group whose offsets enclose e."""
    if index.numel() == 0:
        return left.new_zeros(0)
    if compiled.serves(left, right):
        return compiled.sampled(left, offsets, right, index)
    if has_sampled_addmm(left.device.type, left.dtype):
        return _sampled_addmm(left, offsets, right, index)
    return sampled_plain(left, offsets, right, index)


def decoding_error(
    values: Float[Tensor, "entries"],
    weight: Float[Tensor, "n_latents d_in"],
    bias: Float[Tensor, "d_in"],
    x: Float[Tensor, "batch d_in"],
    support: Support,
) -> tuple[Float[Tensor, "batch"], Float[Tensor, "batch d_in"], Float[Tensor, "entries"]]:
    """Return ‖r‖² of each row, r = x − bias − Σ value · weight[latent], and weight[latent] · r of each entry."""
    if compiled.serves(values, weight, x):
        return compiled.decoding_error(values, weight, bias, x, support.latents, support.offsets)
    residual = x - bias - bag_sum(support.latents, values, support.offsets, weight)
    by_latent = support.by_latent
    pulls = by_latent.back(sampled(weight, by_latent.offsets, residual, by_latent.rows))
    return residual.square().sum(1), residual, pulls


def _sampled_addmm(left: Tensor, offsets: Tensor, right: Tensor, index: Tensor) -> Tensor:
    size = (left.shape[0], right.shape[0])
    zeros = torch.zeros(index.numel(), dtype=left.dtype, device=left.device)
    pattern = torch.sparse_csr_tensor(offsets, index, zeros, size=size, check_invariants=False)
    return torch.sparse.sampled_addmm(pattern, left, right.T, beta=0.0).values()


def sampled_plain(left: Tensor, offsets: Tensor, right: Tensor, index: Tensor) -> Tensor:
    """Do what `sampled` does by gathering both vectors of every entry."""
    groups = torch.repeat_interleave(
        torch.arange(left.shape[0], device=left.device), offsets.diff(), output_size=index.numel()
    )
    pairs = zip(groups.split(ENTRIES_AT_ONCE), index.split(ENTRIES_AT_ONCE), strict=True)
    return torch.cat([(left[i] * right[j]).sum(-1) for i, j in pairs])


@cache
def has_sampled_addmm(device: str, dtype: torch.dtype) -> bool:
    """Say whether this build of torch has a right `sampled_addmm` on this kind of device."""
    left = torch.arange(6, dtype=dtype, device=device).reshape(2, 3)
    right = torch.arange(12, dtype=dtype, device=device).reshape(4, 3)
    offsets, index = torch.tensor([0, 1, 3], device=device), torch.tensor([2, 0, 3], device=device)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch calls CSR tensors a beta, once
            found = _sampled_addmm(left, offsets, right, index)
    except (RuntimeError, NotImplementedError):
        return False
    return torch.equal(found, sampled_plain(left, offsets, right, index))
