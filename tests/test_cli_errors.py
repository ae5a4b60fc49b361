"""Bad input at the command line: one clear message, exit code 2 (wrong request) or 1 (failed work), no traceback."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from saetool import cli
from saetool.artifacts import Artifact, verify
from saetool.vision import BackboneSettings, load_backbone

BACKBONE = {"name": "timm/test_vit", "layers": [2], "pretrained": False, "image_size": 32, "precision": "fp32"}
CONFIG = {
    "images": {"source": "pictures"},
    "backbone": BACKBONE,
    "cache": {"batch_size": 4, "dtype": "float32"},
    "autoencoder": {"kind": "sparse", "expansion": 2, "activation": {"kind": "topk", "k": 4}},
    "training": {"tokens": 192, "batch_size": 16, "held_out": 0.2},
    "evaluation": {"baselines": False},
}


@pytest.fixture
def saetool(command_line) -> Callable:
    """Return the `saetool` program, whose failures are one message."""

    def call(*arguments: object):
        ended = command_line(*arguments)
        assert ended.said.count("saetool: ") == (ended.code != 0)
        return ended

    return call


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """Make a folder with pictures, a config, and the finished run of it, `run`."""
    here = tmp_path_factory.mktemp("finished")
    for i in range(12):
        pixels = np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        path = here / "pictures" / "ab"[i % 2] / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    (here / "config.yaml").write_text(json.dumps({"run": "run", **CONFIG}))  # JSON is YAML
    before, threads = Path.cwd(), torch.get_num_threads()
    torch.set_num_threads(1)
    os.chdir(here)
    try:
        cli.run("config.yaml")
        cli.cache("config.yaml", ["run=other", "seed=5"])
        cli.cache("config.yaml", ["run=wide", "backbone={name: pixels, layers: [1], image_size: 8}"])
    finally:
        os.chdir(before)
        torch.set_num_threads(threads)
    return here


@pytest.fixture
def place(finished, tmp_path, monkeypatch) -> Path:
    """Return a copy of it, which is the working directory."""
    shutil.copytree(finished, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def test_a_text_file_among_the_pictures_fails_by_name_or_is_skipped(saetool, place):
    (place / "pictures/a/02.png").write_text("this is a text file\n")
    failed = saetool("cache", "config.yaml", "run=new")
    assert failed.code == 1
    assert "a/02.png cannot be read as an image" in failed.said
    assert "images.on_error=skip" in failed.said
    assert not (place / "new/activations").exists()
    skipping = saetool("cache", "config.yaml", "run=new", "images.on_error=skip")
    assert skipping.code == 0
    assert "skipped a/02.png" in skipping.said
    content = Artifact.open("new/activations").content
    assert content["images"] == 11
    assert content["skipped"] == [{"index": 1, "path": "a/02.png"}]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cache", "config.yaml", "images.source=nowhere"], "there is no nowhere"),
        (["cache", "config.yaml", "images.source=empty"], "no image files below empty"),
        (["cache", "config.yaml", "run=config.yaml"], "config.yaml: a file is where a folder should be"),
        (["cache", "config.yaml", "run=config.yaml/below"], "a file is where a folder should be"),
        (["cache", "config.yaml", "backbone.name=timm/no_such_vit"], "timm has no model 'no_such_vit'"),
        (["cache", "config.yaml", "backbone.layers=[99]"], "has layers 1 to 6; layer 99 was asked for"),
        (["cache", "config.yaml", "backbone.weights=nowhere.safetensors"], "nowhere.safetensors cannot be read"),
        (["run", "nowhere.yaml"], "nowhere.yaml: no such config file"),
        (["run", "binary.yaml"], "binary.yaml: cannot be read"),
        (["run", "unknown.yaml"], "trainig: unknown key. Did you mean training?"),
        (["train", "config.yaml"], "`saetool cache CONFIG` makes it"),
        (["train", "config.yaml", "activations=run/autoencoder"], "holds autoencoder, but activations is needed"),
        (["train", "config.yaml", "activations=run/activations", "autoencoder.activation.k=0"], "greater than 0"),
        (["index", "config.yaml", "activations=run/activations"], "`saetool train CONFIG` makes it"),
        (["info", "nowhere"], "nowhere: no such file"),
        (["verify", "pictures"], "holds no saetool artifact"),
        (["report", "pictures", "--check"], "not a report"),
    ],
)
def test_a_wrong_request_is_refused(saetool, place, arguments, message):
    (place / "empty").mkdir()
    (place / "binary.yaml").write_bytes(bytes(range(256)))
    (place / "unknown.yaml").write_text(json.dumps({"run": "run", "trainig": {}, **CONFIG}))
    if "config.yaml" in arguments and not any(argument.startswith("run=") for argument in arguments):
        arguments = [*arguments, "run=new"]
    ended = saetool(*arguments)
    assert ended.code == 2
    assert message in ended.said
    assert not (place / "new/activations").exists()


def test_a_request_that_failed_at_once_does_not_stand_in_the_way_of_the_right_one(saetool, place):
    assert saetool("cache", "config.yaml", "run=new", "backbone.layers=[99]").code == 2
    assert saetool("cache", "config.yaml", "run=new").code == 0


@pytest.mark.parametrize("command", ["index", "evaluate", "report"])
@pytest.mark.parametrize("store", ["wide", "other"])
def test_an_autoencoder_and_a_store_that_do_not_belong_together(saetool, place, command, store):
    """`wide` has another width; `other` is the same layer of a model with other weights."""
    ended = saetool(command, "config.yaml", f"activations={store}/activations", "--force")
    assert ended.code == 2
    differ = "was not made from" if command == "report" else "was trained on"
    assert differ in ended.said


def test_a_report_takes_neither_the_index_nor_the_evaluation_of_another_model(saetool, place):
    assert saetool("train", "config.yaml", "seed=1", "activations=run/activations", "--force").code == 0
    shutil.rmtree(place / "run/report")
    for command in ("index", "evaluate"):
        ended = saetool("report", "config.yaml")
        assert ended.code == 2
        assert f"`saetool {command} … --force`" in ended.said
        assert saetool(command, "config.yaml", "--force").code == 0
    assert saetool("report", "config.yaml").code == 0


def test_weights_of_a_model_that_are_not_finite(saetool, place):
    model = load_backbone(BackboneSettings(**BACKBONE)).model
    state = {name: tensor.clone().contiguous() for name, tensor in model.state_dict().items()}
    state["blocks.1.mlp.fc2.weight"][0, 0] = float("nan")
    save_file(state, place / "nan.safetensors")
    ended = saetool("cache", "config.yaml", "run=new", "backbone.weights=nan.safetensors")
    assert ended.code == 1
    assert "a/00.png: the values at layer 2 (blocks.1) are not all finite" in ended.said


@pytest.mark.parametrize("damage", ["nan", "header"])
def test_weights_of_an_autoencoder_that_are_damaged(saetool, place, damage):
    file = place / "run/autoencoder/model.safetensors"
    if damage == "nan":
        state = {name: tensor.clone() for name, tensor in load_file(file).items()}
        state["W_enc"][3, 5] = float("nan")
        save_file(state, file)
    else:
        data = bytearray(file.read_bytes())
        data[8] ^= 1
        file.write_bytes(data)
    for command in ("index", "evaluate"):
        ended = saetool(command, "config.yaml", "--force")
        assert ended.code == 2
        assert "damaged: model.safetensors" in ended.said
    assert verify(place / "run/autoencoder")


@pytest.mark.usefixtures("brief_timing")
def test_a_dry_run_starts_nothing_and_refuses_a_disk_that_is_too_small(saetool, place, monkeypatch):
    assert saetool("cache", "config.yaml", "run=new", "--dry-run").code == 0
    free = shutil.disk_usage(place)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    ended = saetool("cache", "config.yaml", "run=new", "--dry-run")
    assert ended.code == 2
    assert "free" in ended.said
    assert not (place / "new").exists()


def test_training_that_diverges_is_failed_work(saetool, place):
    ended = saetool("train", "config.yaml", "run=new", "activations=run/activations", "training.lr=1e30")
    assert ended.code == 1
    assert "lr" in ended.said
    assert not (place / "new/autoencoder").exists()


def test_damaged_and_unfinished_artifacts_are_refused(saetool, place):
    shard = place / "run/activations/layer-02/00000.safetensors"
    os.truncate(shard, 100)
    for arguments in (["train", "config.yaml", "--force"], ["info", "run/activations"]):
        ended = saetool(*arguments)
        assert ended.code == 2
        assert "damaged: layer-02/00000.safetensors has 100 bytes" in ended.said
    shutil.copytree(place / "run/activations", place / "half/activations.partial")
    ended = saetool("train", "config.yaml", "run=half")
    assert ended.code == 2
    assert "not finished" in ended.said


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.lr=.inf", "training.lr: Input should be a finite number"),
        ("report.max_mb=.inf", "report.max_mb: Input should be a finite number"),
        ("training.betas=[0.9, 1.0]", "training.betas.1"),
        ("backbone.image_size=0", "backbone.image_size"),
        ("index.embedding_layer=1", "index.embedding_layer is 1, but backbone.layers caches [2]"),
        ("index.embeddings=nowhere", "nowhere: no such artifact"),
        ("evaluation.stability=[nowhere]", "nowhere: no such artifact"),
        ("sweep={training.lr: []}", "training.lr has no values"),
        ("sweep=[{name: activations, training.lr: 1e-3}]", "cannot be named 'activations'"),
        ("sweep=[{name: .., training.lr: 1e-3}]", "cannot be named '..'"),
        ("sweep=[{name: a.partial, training.lr: 1e-3}]", "cannot be named 'a.partial'"),
    ],
)
def test_what_cannot_work_is_refused_before_any_work(saetool, place, override, message):
    ended = saetool("run", "config.yaml", "run=new", override)
    assert ended.code == 2
    assert message in ended.said
    assert not (place / "new").exists()


def test_more_active_latents_than_there_are_is_refused(saetool, place):
    ended = saetool("train", "config.yaml", "run=new", "activations=run/activations", "autoencoder.activation.k=999")
    assert ended.code == 2
    assert "autoencoder.activation.k 999 exceeds" in ended.said


def test_without_held_out_images_the_page_is_written_all_the_same(saetool, place):
    assert saetool("run", "config.yaml", "run=new", "training.held_out=0").code == 0
    assert (place / "new/report/index.html").is_file()
    assert not (place / "new/evaluation").exists()


def test_a_page_made_before_the_index_is_made_again_with_it(saetool, place):
    for command in ("cache", "train", "report"):
        assert saetool(command, "config.yaml", "run=new").code == 0
    assert [entry["kind"] for entry in Artifact.open("new/report").inputs] == ["activations", "autoencoder"]
    assert saetool("run", "config.yaml", "run=new").code == 0
    assert "features" in [entry["kind"] for entry in Artifact.open("new/report").inputs]


def test_a_store_of_other_images_is_not_taken_for_a_named_set(saetool, place):
    ended = saetool("run", "config.yaml", "images.source=digits")
    assert ended.code == 2
    shutil.move("pictures", "elsewhere")
    ended = saetool("cache", "config.yaml")  # images that are not at hand any more are no obstacle
    assert ended.code == 0
    assert "the images themselves are not at hand" in ended.said


def test_a_lost_manifest_is_no_stranger(saetool, place):
    (place / "run/activations/manifest.json").unlink()
    ended = saetool("cache", "config.yaml")
    assert ended.code == 2
    assert "run/activations: has no manifest.json: damaged" in ended.said


def test_escape_codes_in_a_files_name_are_shown(saetool, place):
    (place / "pictures/a/\x1b[31mred\u202egnp.png").write_text("no picture")
    ended = saetool("cache", "config.yaml", "run=new")
    assert ended.code == 1
    assert "\x1b" not in ended.said
    assert "\u202e" not in ended.said
    assert r"\x1b[31mred\u202egnp.png cannot be read" in ended.said


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252"])
def test_a_terminal_of_another_encoding_is_no_failure(encoding, place):
    command = [sys.executable, "-m", "saetool", "info", "run"]
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    (place / "run").rename(place / "run→")
    done = subprocess.run([*command[:-1], "run→"], env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert b"run?" in done.stdout


def test_users_mistakes_leave_no_notes_in_the_temporary_folder(saetool, place, monkeypatch):
    import tempfile

    (place / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place / "temporary"))
    torch.save([1, 2], place / "list.pt")
    for wrong in (
        "backbone.weights=list.pt",
        'images.source="a\\0b"',
        f"images.source={'x' * 300}",
        "images.source=~/no",
    ):
        assert saetool("cache", "config.yaml", "run=new", wrong).code == 2
    assert not list((place / "temporary").iterdir())


def test_another_librarys_sentence_is_cut_between_words():
    from saetool.errors import first_line

    line = first_line(ValueError("word " * 100 + "\nsecond line"))
    assert len(line) <= 202
    assert line.endswith("word …")
    assert first_line(ValueError("short")) == "short"
