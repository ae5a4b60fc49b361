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

from saetool.lazy import face

if TYPE_CHECKING:
    from saetool.activations import cache as cache, write_store as write_store
    from saetool.artifacts import Artifact as Artifact
    from saetool.autoencoders import register_family as register_family
    from saetool.errors import RequestError as RequestError, SaetoolError as SaetoolError, WorkError as WorkError
    from saetool.evaluation import evaluate as evaluate, intervene as intervene
    from saetool.exchange import (
        export_autoencoder as export_autoencoder,
        import_autoencoder as import_autoencoder,
        load as load,
    )
    from saetool.features import Features as Features, index as index, table as table
    from saetool.images import open_source as open_source, register_source as register_source
    from saetool.pipeline import run as run
    from saetool.report.stage import report as report
    from saetool.training import train as train
    from saetool.version import __version__ as __version__
    from saetool.vision import load_backbone as load_backbone, wrap as wrap

__all__, __getattr__, __dir__ = face(
    __name__,
    {
        "activations": ("cache", "write_store"),
        "artifacts": ("Artifact",),
        "autoencoders": ("register_family",),
        "errors": ("RequestError", "SaetoolError", "WorkError"),
        "evaluation": ("evaluate", "intervene"),
        "exchange": ("export_autoencoder", "import_autoencoder", "load"),
        "features": ("Features", "index", "table"),
        "images": ("open_source", "register_source"),
        "pipeline": ("run",),
        "report": ("report",),
        "training": ("train",),
        "version": ("__version__",),
        "vision": ("load_backbone", "wrap"),
    },
)
