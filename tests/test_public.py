"""The Python API: its names, its examples, and what it says to what it does not take."""

import doctest
import inspect
import tomllib
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

import saetool
from saetool.autoencoders import families
from saetool.autoencoders.linear import Linear, LinearSettings
from saetool.errors import SaetoolError

ROOT = Path(__file__).parents[1]
NO_CALLS = {"Artifact", "RequestError", "SaetoolError", "WorkError", "__version__"}
CALLS = [name for name in saetool.__all__ if name not in NO_CALLS]
FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


def test_dir_shows_the_public_names_and_no_other():
    assert dir(saetool) == sorted(saetool.__all__)
    assert all(hasattr(saetool, name) for name in saetool.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        saetool.trian  # noqa: B018


def test_the_version_is_that_of_the_package():
    assert saetool.__version__ == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def test_the_room_of_reports_is_a_call_too_and_shows_its_arguments():
    import saetool.report as room

    assert room is saetool.report
    assert {"made", "out", "evaluation"} <= set(inspect.signature(saetool.report).parameters)


@pytest.mark.parametrize("name", CALLS)
def test_the_example_of_every_public_call_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(families.REGISTERED, "known", {})
    thing = saetool.report.stage.report if name == "report" else getattr(saetool, name)
    given = {"saetool": saetool, "torch": torch, "np": np, "timm": timm}
    examples = [test for test in doctest.DocTestFinder(recurse=False).find(thing, name, globs=given) if test.examples]
    assert examples, f"{name} has no example"
    failures: list[str] = []
    for test in examples:
        doctest.DocTestRunner(optionflags=FLAGS).run(test, out=failures.append)
    assert not failures, "".join(failures)


ODD = {
    "nothing": None,
    "int": 3,
    "float": 0.5,
    "bool": True,
    "list": [1, 2],
    "dict": {"kind": 3},
    "empty": "",
    "text": "no/such/place",
    "bytes": b"x",
    "array": np.zeros((2, 3)),
    "objects": np.array([object()]),
    "tensor": torch.zeros(2, 3),
    "meta": torch.zeros(2, 3, device="meta"),
    "nan": torch.full((4, 3), float("nan")),
    "module": torch.nn.Linear(2, 2),
    "function": len,
    "class": int,
}
QUICK = ("nothing", "int", "text", "array", "tensor", "module")
"""What most newcomers hand over; the others are tried in the slow set."""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A store, an autoencoder and an index of it."""
    place = tmp_path_factory.mktemp("made")
    rows = torch.randn(40, 4, 16, generator=torch.Generator().manual_seed(0))
    store = saetool.write_store(place / "activations", rows)
    settings = {"kind": "topk", "k": 4, "n_latents": 32, "tokens": 512, "batch_size": 64}
    model = saetool.train(store, **settings, out=place / "autoencoder")
    return {"store": store, "model": model, "features": saetool.index(model, store, place / "features")}


def right_arguments(name, made, out):
    """Arguments of each call that would do, each of which the test puts something odd in place of."""
    store, model, features = made["store"], made["model"], made["features"]
    backbone = saetool.wrap(timm.create_model("test_vit", img_size=32), layers=[2], image_size=32)
    short = {"kind": "topk", "k": 2, "n_latents": 32, "tokens": 64, "batch_size": 16}
    return {
        "Features": {"path": features},
        "cache": {"backbone": "pixels/gray", "images": "digits", "sites": 1, "out": out, "settings": None, "seed": 0},
        "evaluate": {"autoencoder": model, "activations": store, "out": out, "settings": None, "features": features},
        "export_autoencoder": {"autoencoder": model, "out": out, "format": "sparsify"},
        "import_autoencoder": {"source": model.path, "out": out, "wanted": None, "format": None},
        "index": {"autoencoder": model, "activations": store, "out": out, "settings": None, "embeddings": None},
        "intervene": {"backbone": backbone, "autoencoder": saetool.load(model), "changes": {1: 0.0}, "site": 2},
        "load": {"source": model},
        "load_backbone": {"settings": {"name": "timm/test_vit", "pretrained": False, "layers": [1]}},
        "open_source": {"images": "digits", "root": None},
        "register_family": {"name": "mine", "settings": LinearSettings, "build": Linear},
        "register_source": {"name": "mine", "source": "digits"},
        "table": {"features": features, "activations": None, "out": None},
        "report": {"made": features, "out": out, "settings": None, "autoencoder": model, "evaluation": None},
        "run": {"config": "digits", "overrides": {"run": str(out)}},
        "train": {"source": torch.randn(64, 16), **short, "training": None, "out": out, "seed": 0, "device": "cpu"},
        "wrap": {"module": timm.create_model("test_vit", img_size=32), "layers": [2], "image_size": 32},
        "write_store": {"out": out, "tokens": torch.zeros(2, 3, 4)},
    }[name]


@pytest.mark.parametrize(
    "odd", [QUICK, pytest.param([kind for kind in ODD if kind not in QUICK], marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("name", CALLS)
def test_whatever_stands_in_place_of_an_argument_is_taken_or_ends_in_a_sentence(name, odd, made, tmp_path, monkeypatch):
    """Everything a newcomer may hand over: what is refused says why, and is never an AttributeError of ours."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("saetool.pipeline.Run.make_all", lambda run, force: None)  # the wrong config is what counts
    call, failures = getattr(saetool, name), []
    right = right_arguments(name, made, tmp_path / "out")
    for argument, kind in ((argument, kind) for argument in right for kind in odd):
        out = {"out": tmp_path / f"{argument}-{kind}"} if "out" in right else {}
        try:
            result = call(**(right | out | {argument: ODD[kind]}))
            if hasattr(result, "__enter__"):
                with result:
                    pass
        except SaetoolError as error:
            lines = str(error).splitlines()  # one a wrong key
            if len(lines) > 9 or any(len(line) > 400 or line[:1] in " [" for line in lines):
                failures.append(f"{argument}={kind}: not a sentence: {error}")
        except Exception as error:
            failures.append(f"{argument}={kind}: {type(error).__name__}: {error}")
    assert not failures, "\n".join(failures)


def test_an_artifact_is_five_lines_in_a_notebook(made):
    for artifact in (made["store"].artifact, made["model"], made["features"]):
        lines = repr(artifact).splitlines()
        assert len(lines) == 5
        assert lines[0] == f"{artifact.kind}: {artifact.path}"
        assert artifact.id in lines[4]
    assert "40 images" in repr(made["store"].artifact)
    assert "sparse, 16 → 32 latents; held out: FVU 0." in repr(made["model"])
    assert "from  autoencoder ../autoencoder, activations ../activations" in repr(made["features"])


def test_a_store_and_a_backbone_say_what_they_are(made):
    assert repr(made["store"]) == repr(made["store"].artifact)
    backbone = saetool.wrap(timm.create_model("test_vit", img_size=32), layers=[2], image_size=32)
    shown = "VisionTransformer, 6 layers, patches, grid (2, 2); widths at layer 2 (blocks.1): 64"
    assert repr(backbone) == f"Backbone({shown})"


def test_what_an_artifact_says_is_escaped(made):
    odd = saetool.Artifact(Path("<script>"), made["model"].manifest)
    assert odd._repr_html_().startswith("<pre>autoencoder: &lt;script&gt;")


def test_the_error_of_a_call_is_that_of_the_command_line(made, tmp_path):
    """One function validates both, so that what one says the other says."""
    from saetool.config import load_config

    for section, key, value in (
        ("index", "top", 0),
        ("index", "topp", 3),
        ("index", "top_by", "median"),
        ("report", "max_mb", -1),
        ("evaluation", "bootstrap", "many"),
        ("cache", "dtype", "int8"),
        ("backbone", "tokens", "none"),
    ):
        with pytest.raises(saetool.RequestError) as there:
            load_config("demo", [f"{section}.{key}={value}"])
        name = {"evaluation": "evaluate", "backbone": "cache"}.get(section, section)
        right = right_arguments(name, made, tmp_path / "out")
        if section in ("index", "report", "evaluation", "cache"):
            right |= {"settings": {key: value}}
        else:
            right |= {key: value}
        with pytest.raises(saetool.RequestError) as here:
            getattr(saetool, name)(**right)
        assert str(here.value).removeprefix(f"{name}: ") == str(there.value).removeprefix("demo.yaml: ")
