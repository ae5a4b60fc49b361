"""Does an autoencoder belong to these activations, to this model? A site is its identity; both are named where not."""

from pathlib import Path

from saetool.artifacts import Artifact
from saetool.errors import RequestError

IDENTITY = ("weights", "module", "tokens", "preprocessing")
"""What a site's digest covers."""
MEANT = "saetool import AUTOENCODER --activations STORE --another-site --out DIR"
"""How to say that an autoencoder is meant for a site that it does not come from."""


def name_site(site: dict) -> str:
    """Return a site's name for people: `layer 10 (blocks.9) of demo/vits14 (patches)`."""
    return f"{site.get('label', site.get('module'))} of {site.get('backbone') or 'given rows'} ({site.get('tokens')})"


def refuse_other_site(here: dict, trained: dict) -> None:
    """Raise RequestError where two site descriptions differ: weights, module, tokens or preprocessing; name both."""
    if here["digest"] != trained["digest"]:
        differing = [key for key in IDENTITY if here.get(key) != trained.get(key)]
        raise RequestError(
            f"the autoencoder was trained on {name_site(trained)}, not on {name_site(here)}; "
            f"they differ in {', '.join(differing) or 'their digest'}. Use activations and model of the same site, "
            f"or, where another is meant, say so: {MEANT}."
        )


def find_site(autoencoder: Artifact, store: Artifact) -> dict:
    """Return the store's site that the autoencoder was trained on; RequestError names both where there is none."""
    trained = autoencoder.content["site"]
    sites = [site for site in store.content["sites"] if not site.get("embedding")]
    d_in = autoencoder.content["d_in"]
    if trained is None:
        return _by_width(autoencoder, store, sites)
    alike = (site for key in ("digest", "module") for site in sites if site[key] == trained[key])
    near = next(alike, sites[0])
    if near["d"] != d_in:
        raise RequestError(
            f"{autoencoder.path} was trained on {name_site(trained)}, vectors of width {d_in}; "
            f"{store.path} holds {name_site(near)}, width {near['d']}. Cache the site it was trained on."
        )
    refuse_other_site(near, trained)
    return near


def _by_width(autoencoder: Artifact, store: Artifact, sites: list[dict]) -> dict:
    """Return the only site whose width fits an autoencoder that has no site: it may come from a stream, or a file."""
    d_in, claimed = autoencoder.content["d_in"], autoencoder.content.get("origin", {}).get("claim", {})
    fitting = [site for site in sites if site["d"] == d_in]
    if len(fitting) != 1:
        widths = ", ".join(f"{site['folder']}: {site['d']}" for site in sites)
        raise RequestError(
            f"{autoencoder.path} takes vectors of width {d_in} and does not say from which site; "
            f"{store.path} holds {widths}"
        )
    layer = claimed.get("layer")
    if layer is not None and layer not in (fitting[0].get("layer"), fitting[0].get("module")):
        said = f"layer {layer}" if isinstance(layer, int) else layer
        raise RequestError(
            f"{autoencoder.path} comes from {said} of {claimed.get('model') or 'a model'}; {store.path} holds "
            f"{name_site(fitting[0])}. Cache that site, or, where this one is meant, say so: {MEANT}."
        )
    return fitting[0]


def open_others(paths: tuple[str, ...], autoencoder: Artifact) -> list[Artifact]:
    """Open the autoencoders at `paths`; RequestError where one was trained on another site than `autoencoder`."""
    found = [Artifact.open(Path(path), kind="autoencoder") for path in paths]
    for other in found:
        mine, theirs = autoencoder.content["site"], other.content["site"]
        if mine and theirs:
            refuse_other_site(theirs, mine)
    return found
