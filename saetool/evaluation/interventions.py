"""Change latents while the model runs, or put the reconstruction in place of the activation; hooks always come off.

The activation's part that the autoencoder does not explain is kept unless asked otherwise: x becomes
x + decode(z') − decode(z), for a linear decoder x + Σ_j (z'_j − z_j) W_dec,j with W_dec,j in raw units.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from numbers import Integral, Real

import torch
from jaxtyping import Float
from torch import Tensor

from saetool.activations.sites import refuse_other_site
from saetool.autoencoders.base import Autoencoder
from saetool.errors import RequestError, shown, type_name
from saetool.training.heldout import reconstruct
from saetool.vision.backbone import Backbone, Site
from saetool.vision.hooks import Replacement


@dataclass(frozen=True)
class Scale:
    """z' = factor · z: 0 ablates, 2 doubles. A latent that is silent stays silent."""

    factor: float

    def __call__(self, z: Tensor) -> Tensor:
        return z * self.factor


@dataclass(frozen=True)
class Value:
    """z' = value, on every chosen token: clamps the latent, firing or not."""

    value: float

    def __call__(self, z: Tensor) -> Tensor:
        return torch.full_like(z, self.value)


@dataclass(frozen=True)
class Delta:
    """z' = z + amount, on every chosen token."""

    amount: float

    def __call__(self, z: Tensor) -> Tensor:
        return z + self.amount


LARGEST = torch.finfo(torch.float32).max
"""Of what a latent is changed by: activations are float32 or less."""
Change = Scale | Value | Delta
Chosen = Sequence[int] | Tensor | None
"""Which of an image's selected tokens change: all, some by index (patches are row-major), or a mask of booleans
[tokens] or [batch, tokens]."""


@contextmanager
def intervene(
    backbone: Backbone,
    autoencoder: Autoencoder,
    changes: Mapping[int, Change | float],
    tokens: Chosen = None,
    *,
    site: int | str | None = None,
    keep_error: bool = True,
) -> Iterator[None]:
    """While the block runs, the backbone computes with changed latents at the autoencoder's site.

    `changes` maps latents to a Scale, Value or Delta; a plain number is a Scale, so {7: 0} ablates latent 7.
    `tokens` chooses where (default: every token of the site). `site` (a layer from 1 or a module path) is needed
    only where the autoencoder was not loaded from an artifact. `keep_error=False` continues with the changed
    reconstruction instead of the activation. Blocks nest; inner ones see what outer ones made.

    Raises RequestError for a latent that does not exist, a token outside the image, or another site or width.

    >>> module = timm.create_model("test_vit", img_size=32).eval()
    >>> backbone = saetool.wrap(module, layers=[2], image_size=32)
    >>> pictures = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    >>> rows = backbone.forward_to(pictures)[0]          # [4 pictures, 4 patches, 64]
    >>> made = saetool.train(rows, kind="topk", k=4, n_latents=128, tokens=256, batch_size=4, out="runs/change/model")
    >>> model, clean = saetool.load(made), module(pictures)
    >>> with saetool.intervene(backbone, model, {latent: 0.0 for latent in range(128)}, site=2):
    ...     changed = module(pictures)
    >>> bool((changed != clean).any()), bool((module(pictures) == clean).all())
    (True, True)
    """
    if not isinstance(backbone, Backbone) or not isinstance(autoencoder, Autoencoder):
        wrong = autoencoder if isinstance(backbone, Backbone) else backbone
        raise RequestError(
            f"intervene takes no {type_name(wrong)} there: give what saetool.load_backbone or saetool.wrap returned, "
            "then what saetool.load returned."
        )
    place = site_of(backbone, autoencoder, site)
    edits = _checked(changes, autoencoder.n_latents)
    chosen = _mask(tokens, backbone.tokens_at(place))
    directions = autoencoder.decoder_directions()

    @torch.no_grad()
    def change(x: Float[Tensor, "batch tokens d"]) -> Float[Tensor, "batch tokens d"]:
        rows = rows_for(autoencoder, x)
        if directions is not None:
            base = rows if keep_error else reconstruct(autoencoder, rows)[1]
            changed = base + _linear_shift(autoencoder, directions, rows, edits)
        else:
            changed = _changed_reconstruction(autoencoder, rows, edits, keep_error)
        return _where(chosen, changed.view(x.shape), x)

    with backbone.replacing(place, _shifted(change)):
        yield


@contextmanager
def splice(
    backbone: Backbone,
    autoencoder: Autoencoder,
    tokens: Chosen = None,
    *,
    error: bool = False,
    site: int | str | None = None,
) -> Iterator[None]:
    """While the block runs, the reconstruction stands in place of the activation, with `error` plus the error term.

    With the error term the model's output is unchanged to rounding: the proof that the splice itself is exact.
    """
    place = site_of(backbone, autoencoder, site)
    chosen = _mask(tokens, backbone.tokens_at(place))

    @torch.no_grad()
    def put(x: Float[Tensor, "batch tokens d"]) -> Float[Tensor, "batch tokens d"]:
        rows = rows_for(autoencoder, x)
        x_hat = reconstruct(autoencoder, rows)[1]
        return _where(chosen, (x_hat + (rows - x_hat) if error else x_hat).view(x.shape), x)

    with backbone.replacing(place, put):
        yield


@contextmanager
def ablate_site(
    backbone: Backbone, site: int | str | Site, with_vector: Float[Tensor, "d"] | None = None
) -> Iterator[None]:
    """While the block runs, every selected token at the site is 0, or `with_vector` (its mean)."""
    place = site if isinstance(site, Site) else backbone.site(site)

    def put(x: Float[Tensor, "batch tokens d"]) -> Float[Tensor, "batch tokens d"]:
        if with_vector is None:
            return torch.zeros_like(x)
        return with_vector.to(x.device, x.dtype).expand_as(x)

    with backbone.replacing(place, put):
        yield


def site_of(backbone: Backbone, autoencoder: Autoencoder, site: int | str | None = None) -> Site:
    """Return the backbone's site that an autoencoder belongs to.

    Raises RequestError where the autoencoder was trained on another site (both are named) or has another width.
    """
    if site is not None:
        place = backbone.site(site)
    else:
        trained = autoencoder.site
        if not trained:
            raise RequestError("this autoencoder does not say which site it was trained on: give site=LAYER")
        place = backbone.site(trained["module"])
        refuse_other_site(backbone.describe_site(place), trained)
    if place.d != autoencoder.d_in:
        raise RequestError(
            f"the autoencoder takes vectors of width {autoencoder.d_in}, "
            f"but {place.label} of {backbone.name} gives {place.d}"
        )
    return place


def _checked(changes: Mapping[int, Change | float], n_latents: int) -> dict[int, Change]:
    if not isinstance(changes, Mapping):
        raise RequestError(f"intervene takes changes by latent, {{7: 0.0}}, not {type_name(changes)}.")
    for latent, change in changes.items():
        if isinstance(latent, bool) or not isinstance(latent, Integral) or not 0 <= latent < n_latents:
            raise RequestError(f"there is no latent {latent!r}: this autoencoder has latents 0 to {n_latents - 1}")
        if not isinstance(change, Scale | Value | Delta | int | float):
            raise RequestError(
                f"latent {latent}: {change!r} is no change; give Scale, Value or Delta, or a number to scale by"
            )
        amount = astuple(change)[0] if isinstance(change, Scale | Value | Delta) else change
        if not isinstance(amount, Real) or isinstance(amount, bool):
            raise RequestError(f"latent {latent}: {shown(amount)} is no number")
        if not abs(amount) <= LARGEST:  # pyright: ignore[reportOperatorIssue]
            raise RequestError(f"latent {latent}: {shown(change)} is not finite in float32; give a smaller number")
    return {int(k): c if isinstance(c, Scale | Value | Delta) else Scale(float(c)) for k, c in changes.items()}


def _mask(tokens: Chosen, count: int) -> Tensor | None:
    if tokens is None:
        return None
    try:
        given = torch.as_tensor(tokens)
    except (TypeError, ValueError, RuntimeError):
        raise RequestError(f"tokens: indices or a mask of booleans, not {type_name(tokens)}") from None
    if given.ndim == 0:
        raise RequestError(f"tokens: a list of indices, or a mask of booleans, not {shown(tokens)}")
    if given.dtype == torch.bool:
        if given.shape[-1] != count:
            raise RequestError(f"tokens: a mask over {given.shape[-1]} tokens, but an image has {count} here")
        if given.ndim > 2:
            raise RequestError(f"tokens: a mask is [tokens] or [batch, tokens], not {list(given.shape)}")
        return given
    if given.ndim > 1:
        raise RequestError("tokens: indices are of every image; for other tokens of each give a mask [batch, tokens]")
    if given.is_floating_point() and given.numel():
        raise RequestError("tokens: indices are whole numbers, or a mask of booleans")
    outside = [int(index) for index in given.flatten() if not 0 <= int(index) < count]
    if outside:
        raise RequestError(f"tokens: there is no token {outside[0]}; an image has tokens 0 to {count - 1} here")
    mask = torch.zeros(count, dtype=torch.bool)
    mask[given.flatten().long()] = True
    return mask


def _where(chosen: Tensor | None, changed: Tensor, x: Tensor) -> Tensor:
    changed = changed.to(x.device)
    if chosen is None:
        return changed
    if chosen.ndim == 2 and len(chosen) != len(x):
        raise RequestError(f"tokens: a mask for {len(chosen)} images, but the model was given {len(x)}")
    return torch.where(chosen.to(x.device)[..., None], changed, x.to(changed.dtype))


def rows_for(autoencoder: Autoencoder, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "rows d_in"]:
    """Return tokens as rows on the autoencoder's device, in its dtype."""
    like = next(iter([*autoencoder.parameters(), *autoencoder.buffers()]))
    return x.detach().reshape(-1, x.shape[-1]).to(like.device, like.dtype)


def _shifted(change: Replacement) -> Replacement:
    """Keep the path of gradients: what is added to x is a constant, so that attributions see through the change."""

    def replace(x: Tensor) -> Tensor:
        if not x.requires_grad:
            return change(x)
        return x + (change(x) - x.detach())

    return replace


def _linear_shift(
    autoencoder: Autoencoder, directions: Tensor, rows: Float[Tensor, "rows d"], edits: dict[int, Change]
) -> Float[Tensor, "rows d"]:
    latents = list(edits)
    if not latents:
        return torch.zeros_like(rows)
    z = latent_values(autoencoder, rows, latents)
    shift = torch.stack([edits[latent](z[:, i]) - z[:, i] for i, latent in enumerate(latents)], dim=-1)
    moved = shift @ directions[latents].to(shift.device, shift.dtype)
    if autoencoder.adds_input:
        return moved
    return autoencoder.complete(moved, rows) - autoencoder.complete(torch.zeros_like(moved), rows)


def latent_values(
    autoencoder: Autoencoder, rows: Float[Tensor, "rows d"], latents: Sequence[int]
) -> Float[Tensor, "rows chosen"]:
    """Return the values of a few latents, 0 where they are silent."""
    chosen = torch.as_tensor(latents, device=rows.device)
    if autoencoder.active_above > 0:
        return autoencoder.encode(rows)[:, chosen]
    codes = autoencoder.encode_sparse(rows)
    column = torch.full((autoencoder.n_latents,), -1, device=rows.device)
    column[chosen] = torch.arange(len(chosen), device=rows.device)
    kept = column[codes.latents] >= 0
    z = codes.values.new_zeros(rows.shape[0], len(chosen))
    z[codes.row_of_entry()[kept], column[codes.latents[kept]]] = codes.values[kept]
    return z


def _changed_reconstruction(
    autoencoder: Autoencoder, rows: Float[Tensor, "rows d"], edits: dict[int, Change], keep_error: bool
) -> Float[Tensor, "rows d"]:
    z = autoencoder.encode(rows)
    changed = z.clone()
    for latent, edit in edits.items():
        changed[:, latent] = edit(z[:, latent])
    x_hat = autoencoder.decode(changed)
    if keep_error:
        return rows + (autoencoder.complete(x_hat, rows) - autoencoder.complete(autoencoder.decode(z), rows))
    return autoencoder.complete(x_hat, rows)
