"""saetool: open up vision transformers with sparse (and other) autoencoders.

run = saetool.run("demo")                                 # everything of a config, up to the page
store = saetool.cache("timm/vit_base_patch16_clip_224.openai", "photos", 11, "runs/mine/activations")
made = saetool.train(store, kind="topk", k=32, expansion=32, tokens=10_000_000, out="runs/mine/autoencoder")
index = saetool.index(made, store, "runs/mine/features")  # what each latent means
saetool.evaluate(made, store, "runs/mine/evaluation")     # how good it is on held-out images
saetool.report(index, "runs/mine/report")                 # the page
model = saetool.load(made)                                # raw activations in, latents out
saetool.Features(index).show(7)                           # a strip of pictures
with saetool.intervene(backbone, model, {7: 0.0}): …      # without latent 7
"""

from typing import TYPE_CHECKING

from saetool.lazy import lazy_names

if TYPE_CHECKING:
    from saetool.activations import cache, write_store
    from saetool.artifacts import Artifact
    from saetool.autoencoders import register_family
    from saetool.errors import RequestError, SaetoolError, WorkError
    from saetool.evaluation import evaluate, intervene
    from saetool.exchange import export_autoencoder, import_autoencoder, load
    from saetool.features import Features, index, table
    from saetool.images import open_source, register_source
    from saetool.pipeline import run
    from saetool.report.stage import report
    from saetool.training import train
    from saetool.version import __version__
    from saetool.vision import load_backbone, wrap

__all__ = [
    "Artifact",
    "Features",
    "RequestError",
    "SaetoolError",
    "WorkError",
    "__version__",
    "cache",
    "evaluate",
    "export_autoencoder",
    "import_autoencoder",
    "index",
    "intervene",
    "load",
    "load_backbone",
    "open_source",
    "register_family",
    "register_source",
    "report",
    "run",
    "table",
    "train",
    "wrap",
    "write_store",
]

__getattr__ = lazy_names(
    "saetool",
    {
        "Artifact": "artifacts",
        "Features": "features",
        "RequestError": "errors",
        "SaetoolError": "errors",
        "WorkError": "errors",
        "__version__": "version",
        "cache": "activations",
        "evaluate": "evaluation",
        "export_autoencoder": "exchange",
        "import_autoencoder": "exchange",
        "index": "features",
        "intervene": "evaluation",
        "load": "exchange",
        "load_backbone": "vision",
        "open_source": "images",
        "register_family": "autoencoders",
        "register_source": "images",
        "report": "report",
        "run": "pipeline",
        "table": "features",
        "train": "training",
        "wrap": "vision",
        "write_store": "activations",
    },
)


def __dir__() -> list[str]:
    return sorted(__all__)
