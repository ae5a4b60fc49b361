"""From a source in any format to a sealed autoencoder at a site, with its provenance."""

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from saetool.activations import ActivationStore
from saetool.activations.sites import name_site
from saetool.artifacts import Artifact, Partial, Stage, digest_file, digest_json, hub, run_stage
from saetool.artifacts.manifest import MANIFEST
from saetool.autoencoders import families
from saetool.autoencoders.base import Autoencoder
from saetool.errors import RequestError, SaetoolError, first_line, shown, type_name
from saetool.exchange import formats
from saetool.exchange.sites import Claim
from saetool.progress import say

KIND = "autoencoder"
OWN = "saetool"
"""The format of a sealed autoencoder, which is read too: to say that it is meant for another site."""
HELD_OUT = {"seed": 0, "share": 0.1}
"""Which of a store's images count as held out of a training that nobody here saw: baselines learn from the others."""
_READ = (".json", ".pt", ".pth", ".safetensors")


@dataclass(frozen=True)
class Wanted:
    """Where an imported autoencoder is to belong, as far as it is said; `tokens` as a backbone's settings have them."""

    backbone: str | None = None
    layer: int | str | None = None
    tokens: str | None = None
    activations: str | os.PathLike | None = None
    """A store of the site, in place of the backbone."""
    another_site: bool = False
    """Whether a site that the source does not come from is meant."""


@dataclass(frozen=True)
class Source:
    """A source that was read: its model, what its manifest says, and where it comes from."""

    model: Autoencoder
    content: dict[str, Any]
    claim: Claim
    origin: dict[str, Any]


def load(source: str | os.PathLike | Artifact, format: str | None = None, **given: Any) -> Autoencoder:
    """Return the trained autoencoder of a sealed artifact, or of another tool's file, in evaluation mode.

    It takes raw activations. `source` is a path or `hf/OWNER/NAME[/FOLDER][@REVISION]`; `given` says what a file of
    another tool does not. Raises RequestError where it is missing, unfinished, damaged or cannot be represented.

    >>> rows = torch.randn(100, 16, generator=torch.Generator().manual_seed(0))
    >>> saetool.train(rows, kind="topk", k=4, n_latents=32, tokens=512, batch_size=64, out="runs/load/autoencoder")
    autoencoder: runs/load/autoencoder...
    >>> model = saetool.load("runs/load/autoencoder")
    >>> model
    SparseAutoencoder(16 → 32 latents, topk, k = 4, center_scale)
    >>> codes = model.encode_sparse(rows)        # rows of (latent, value)
    >>> model.decode(model.encode(rows)).shape
    torch.Size([100, 16])
    """
    if not isinstance(source, str | os.PathLike | Artifact):
        raise RequestError(f"load takes no {type_name(source)}: give the path of an autoencoder, or its artifact.")
    if isinstance(source, Artifact) or (format is None and not given and _is_artifact(source)):
        return families.load(source)
    return _read(source, format, given).model


def _is_artifact(source: str | os.PathLike) -> bool:
    """Say whether a source is to be read as a sealed artifact: also where it is unfinished, or not there at all."""
    if hub.is_hub(source):
        return (hub.fetch(source, KIND) / MANIFEST).is_file()
    path = Path(source).expanduser()
    return "://" in str(source) or not path.exists() or (path.is_dir() and not _holds_weights(path))


def _holds_weights(path: Path) -> bool:
    ours = (path / MANIFEST).exists() or path.name.endswith(".partial")
    return not ours and any(file.suffix in _READ for file in path.iterdir())


def import_autoencoder(
    source: str | os.PathLike,
    out: str | os.PathLike,
    wanted: Wanted | Mapping[str, Any] | None = None,
    *,
    format: str | None = None,
    given: dict[str, Any] | None = None,
    force: bool = False,
) -> Artifact:
    """Make a sealed autoencoder of a source in any format (see docs/publishing.md) and return it.

    Raises RequestError where the format is not recognized, or something in it cannot be represented exactly, or the
    wanted site is not the one that the source comes from.

    >>> rows = torch.randn(100, 16, generator=torch.Generator().manual_seed(0))
    >>> made = saetool.train(rows, kind="topk", k=4, n_latents=32, tokens=512, batch_size=64, out="runs/theirs/model")
    >>> said = saetool.export_autoencoder(made, "runs/theirs/for_sae_lens", "sae_lens")
    >>> saetool.import_autoencoder("runs/theirs/for_sae_lens", "runs/ours/autoencoder").content["n_latents"]
    32
    """
    if not isinstance(source, str | os.PathLike):
        raise RequestError(f"import_autoencoder takes no {type_name(source)}: give a path, or hf/OWNER/NAME.")
    wanted, given = _as_wanted(wanted), given or {}
    read = _read(source, format, given)
    site = _site(read, wanted, str(source))
    config = {
        "import": {key: read.origin[key] for key in ("format", "digest")},
        "given": given,
        "site": site,
        "another_site": wanted.another_site,
    }
    content = {**read.content, "site": site, "origin": read.origin}

    def build(partial: Partial) -> dict[str, Any]:
        partial.note("source", str(source))
        partial.write_tensors("model.safetensors", read.model.state_dict())
        return content

    return run_stage(Stage(KIND, config, build), out, force=force)


def _as_wanted(given: Any) -> Wanted:
    if given is None or isinstance(given, Wanted):
        return given or Wanted()
    keys = [field.name for field in fields(Wanted)]
    if not isinstance(given, Mapping) or not set(given) <= set(keys):
        raise RequestError(f"import_autoencoder: wanted is a mapping of {', '.join(keys)}, not {shown(given)}")
    return Wanted(**given)


def parse_given(words: list[str]) -> dict[str, Any]:
    """Return what `key=value` words of a command line say: numbers as numbers, the rest as text."""
    given: dict[str, Any] = {}
    for word in words:
        key, separator, value = word.partition("=")
        if not separator or not key:
            raise RequestError(f"{word!r}: write key=value, for example top_k=32.")
        given[key] = parse_number(value)
    return given


def parse_number(text: str) -> int | float | str:
    """Return a number where a text is one, else the text."""
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text


def _read(source: str | os.PathLike, format: str | None, given: dict[str, Any]) -> Source:
    if format is not None and not isinstance(format, str):
        raise RequestError(f"format: one of {', '.join(formats.READERS)}, not {shown(format)}.")
    place = hub.fetch(source, KIND) if hub.is_hub(source) else Path(source).expanduser()
    origin: dict[str, Any] = {"source": str(source) if hub.is_hub(source) else place.name}
    if hub.is_hub(source):
        origin["revision"] = hub.revision_of(place)
    if format in (None, OWN) and (place / MANIFEST).is_file():
        if given:
            raise RequestError(f"{next(iter(given))}=: not asked of a sealed autoencoder, which says it all itself.")
        return _read_own(place, origin)
    found = formats.read(place, format, given)
    plain, model = found.plain, found.model
    origin |= {
        "format": found.format,
        "digest": _digest(found.path, getattr(formats.READERS[found.format], "BESIDE", ())),
        "converted": plain.converted,
        "claim": _writable(plain.claim.as_json()),
        "facts": _writable(plain.facts),
    }
    content = {
        "family": "sparse",
        "settings": model.settings.model_dump(mode="json"),
        "d_in": model.d_in,
        "n_latents": model.n_latents,
        "loss_convention": model.loss_convention(),
        "held_out": HELD_OUT,
        "trained_on": None,
        "tokens": 0,
        "steps": 0,
        "final": {},
    }
    return Source(model, content, plain.claim, origin)


def _writable(found: Any) -> Any:
    """Return what a file says as JSON that a manifest can hold: without NaN, lone surrogates and other objects."""
    text = json.dumps(found, default=str, ensure_ascii=False).encode("utf-8", "replace").decode()
    return json.loads(text, parse_constant=lambda name: None)


def _read_own(place: Path, origin: dict[str, Any]) -> Source:
    artifact = Artifact.open(place, KIND)
    site, earlier = artifact.content["site"], artifact.content.get("origin", {}).get("claim", {})
    claim = Claim(**earlier)
    if site is not None:
        claim = Claim(site["backbone"], site["layer"] or site["module"], site["tokens"])
    origin = {**origin, "format": OWN, "digest": artifact.id, "converted": {}, "claim": claim.as_json(), "facts": {}}
    if "origin" in artifact.content:
        origin["before"] = artifact.content["origin"]
    return Source(families.load(artifact), dict(artifact.content), claim, origin)


def _digest(path: Path, beside: Sequence[str]) -> str:
    """Return the digest of a source: of its file and what counts beside it, or of the files of its folder that a reader
    may look at."""
    if path.is_file():
        files = [path, *(file for name in beside if (file := path.parent / name).is_file())]
        return digest_file(path) if len(files) == 1 else digest_json({file.name: digest_file(file) for file in files})
    files = sorted(file for file in path.iterdir() if file.is_file() and file.suffix in _READ)
    return digest_json({file.name: digest_file(file) for file in files})


# --- the site --------------------------------------------------------------------------------------------------------


def _site(read: Source, wanted: Wanted, name: str) -> dict[str, Any] | None:
    """Return the site that is wanted, or that the source names; None where neither is known."""
    if wanted.activations is not None:
        store = ActivationStore.open(wanted.activations)
        site = dict(store.site(wanted.layer).info)
    elif wanted.backbone is None and wanted.layer is None and wanted.tokens is None:
        if read.origin["format"] == OWN:
            return read.content["site"]
        site = _claimed_site(read.claim, name)
    else:
        site = _site_of_backbone(wanted, read.claim, name)
    if site is None:
        return None
    if site["d"] != read.model.d_in:
        raise RequestError(
            f"{name} takes vectors of width {read.model.d_in}; {name_site(site)} gives {site['d']}: "
            "it cannot belong there."
        )
    if not wanted.another_site:
        _require_claimed(read.claim, site, name)
    return site


def _claimed_site(claim: Claim, name: str) -> dict[str, Any] | None:
    """Return the site that a file names, where its model can be had here."""
    if claim.backbone is None or claim.layer is None:
        say(f"{name}: says that it belongs to {claim.says()}; its site stays open. --backbone and --layer name one.")
        return None
    try:
        return _describe(claim.backbone, claim.layer, claim.tokens or "patches")
    except SaetoolError as error:
        say(f"{name}: belongs to {claim.says()}, which is not at hand ({first_line(error)}); its site stays open.")
        return None


def _site_of_backbone(wanted: Wanted, claim: Claim, name: str) -> dict[str, Any]:
    backbone, layer = wanted.backbone or claim.backbone, wanted.layer if wanted.layer is not None else claim.layer
    if backbone is None or layer is None:
        missing = "--backbone" if backbone is None else "--layer"
        raise RequestError(f"{name}: says that it belongs to {claim.says()}: give {missing} too.")
    return _describe(backbone, layer, wanted.tokens or claim.tokens or "patches")


def _describe(backbone: str, layer: int | str, tokens: str) -> dict[str, Any]:
    from saetool.vision import BackboneSettings, load_backbone

    try:
        settings = BackboneSettings.model_validate({"name": backbone, "layers": [layer], "tokens": tokens})
    except ValidationError as error:
        raise RequestError(f"{backbone}, layer {layer}, tokens {tokens}: {error.errors()[0]['msg']}") from None
    loaded = load_backbone(settings)
    return loaded.describe_site(loaded.site(layer))


def _require_claimed(claim: Claim, site: dict[str, Any], name: str) -> None:
    """Raise RequestError, naming both, where a site is not the one that a file says it belongs to."""
    here = str(site["backbone"])
    pairs = {
        # A model of the hub is there under its own name: facebook/dinov2-base is hf/facebook/dinov2-base.
        "model": (claim.model, here in (claim.backbone, claim.model) or here == f"hf/{claim.model}"),
        "layer": (claim.layer, claim.layer in (site["layer"], site["module"])),
        "tokens": (claim.tokens, claim.tokens == site["tokens"]),
    }
    differing = [key for key, (said, same) in pairs.items() if said is not None and not same]
    if differing:
        tokens = f" ({claim.tokens})" if claim.tokens else ""
        raise RequestError(
            f"{name}: says that it belongs to {claim.says()}{tokens}, not to {name_site(site)}; they differ in "
            f"{', '.join(differing)}. Give --another-site where that is meant."
        )
