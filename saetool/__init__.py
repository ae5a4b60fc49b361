"""saetool: open up vision transformers with sparse (and other) autoencoders.

artifact = saetool.cache(backbone, images, layers, out)   # a model's activations, on disk
artifact = saetool.train(store, autoencoder, training, out)
artifact = saetool.index(autoencoder, store, out)         # what each latent means
model = saetool.load(path)                                # raw activations in, latents out
saetool.Features(path).top(latent)
with saetool.intervene(backbone, model, {latent: …}): …
"""

from typing import TYPE_CHECKING

from saetool.lazy import lazy_names

if TYPE_CHECKING:
    from saetool.activations import cache
    from saetool.evaluation import intervene
    from saetool.exchange import export_autoencoder, import_autoencoder, load
    from saetool.features import Features, index, table
    from saetool.images import open_source, register_source
    from saetool.training import train
    from saetool.vision import load_backbone, wrap

__all__ = [
    "Features",
    "cache",
    "export_autoencoder",
    "import_autoencoder",
    "index",
    "intervene",
    "load",
    "load_backbone",
    "open_source",
    "register_source",
    "table",
    "train",
    "wrap",
]

__getattr__ = lazy_names(
    "saetool",
    {
        "Features": "features",
        "cache": "activations",
        "export_autoencoder": "exchange",
        "import_autoencoder": "exchange",
        "index": "features",
        "intervene": "evaluation",
        "load": "exchange",
        "load_backbone": "vision",
        "open_source": "images",
        "register_source": "images",
        "table": "features",
        "train": "training",
        "wrap": "vision",
    },
)
