"""Artifacts go to a hub and come back from it whole; nothing becomes public unasked. The hub is one on this machine."""

import json
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import saetool
from saetool import cli
from saetool.artifacts import Artifact, hub, verify
from saetool.artifacts.remote import place_of
from saetool.errors import RequestError, WorkError
from saetool.exchange.pushing import push
from saetool.pipeline import Run

sys.path.insert(0, str(Path(__file__).parent))
from exported import random_model, sealed
from hub_server import Server

DATA = Path(__file__).parent / "data"
CONFIG = """
run: {run}
images: {{source: {images}}}
backbone: {{name: timm/test_vit, layers: [2], pretrained: false, image_size: 32, precision: fp32}}
autoencoder: {{kind: sparse, n_latents: 24, activation: {{kind: topk, k: 4}}}}
training: {{tokens: 1000, batch_size: 64, held_out: 0.3}}
evaluation: {{bootstrap: 5}}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A whole run on a few pictures."""
    root = tmp_path_factory.mktemp("push")
    draw = np.random.default_rng(0)
    (root / "images").mkdir()
    for i in range(12):
        Image.fromarray(draw.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(root / "images" / f"{i}.png")
    (root / "run.yaml").write_text(CONFIG.format(run=root / "run", images=root / "images"))
    Run.load(str(root / "run.yaml")).make_all()
    return root


@pytest.fixture
def remote(monkeypatch, tmp_path):
    """A hub that answers, and an empty cache."""
    from huggingface_hub import constants

    with Server() as served:
        monkeypatch.setattr(constants, "ENDPOINT", served.url)
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", served.url + template[template.index("/{repo") :])
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(hub, "getproxies", dict)
        monkeypatch.setenv("HF_TOKEN", "hf_test")
        hub.why_unreachable.cache_clear()
        yield served
        hub.why_unreachable.cache_clear()


def no_hub(monkeypatch):
    """Let the hub be out of reach from now on, without time to try again."""
    from huggingface_hub import constants

    def wait(seconds):
        raise AssertionError(f"waits {seconds} s to try again")

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(time, "sleep", wait)
    hub.why_unreachable.cache_clear()


def command(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["saetool", *map(str, arguments)])
    code = 0
    try:
        cli.main()
    except SystemExit as ended:
        code = ended.code
    said = capsys.readouterr()
    return code, said.out, said.err


# --- there -----------------------------------------------------------------------------------------------------------


def test_a_run_is_pushed_privately_with_a_card_and_comes_back_whole(run, remote, tmp_path):
    push(run / "run", "hf/me/sae", include=["autoencoder", "features", "evaluation"])
    repository = remote.repositories["models/me/sae"]
    assert repository.private
    local = {
        f"{kind}/{file}"
        for kind in ("autoencoder", "features", "evaluation")
        for file in ["manifest.json", *Artifact.open(run / "run" / kind).files]
    }
    assert set(repository.files) == local | {"README.md", "examples.png"}
    for kind in ("autoencoder", "features", "evaluation"):
        there = Artifact.open("hf/me/sae", kind=kind)
        assert there.id == Artifact.open(run / "run" / kind).id
        assert verify(there.path) == []


def test_the_card_says_what_it_is_and_shows_latents(run, remote):
    push(run / "run", "hf/me/sae", include=["autoencoder", "features", "evaluation"], license="mit")
    files = remote.repositories["models/me/sae"].files
    card = files["README.md"].decode()
    final = Artifact.open(run / "run/autoencoder").content["final"]
    assert card.startswith("---\nlicense: mit\nlibrary_name: saetool\n")
    for words in (
        "layer 2 (blocks.1) of timm/test_vit (patches)",
        f"{final['fvu']:.4g} at the end of training",
        f"{final['l0']:.4g} at the end of training",
        "latents never fire on them",
        'saetool.load("hf/me/sae")',
        "![Latents and the images that excite them most](examples.png)",
    ):
        assert words in card
    assert files["examples.png"].startswith(b"\x89PNG")


def test_a_card_without_the_images_has_no_picture(run, remote, tmp_path):
    shutil.copytree(run / "run", tmp_path / "run")
    shutil.rmtree(tmp_path / "run/activations")
    push(tmp_path / "run/features", "hf/me/features")
    files = remote.repositories["models/me/features"].files
    assert "examples.png" not in files
    assert "examples.png" not in files["README.md"].decode()


def test_a_report_becomes_a_static_space(run, remote):
    push(run / "run", "hf/me/sae", include=["report"])
    assert list(remote.repositories) == ["spaces/me/sae"]
    space = remote.repositories["spaces/me/sae"]
    assert (space.private, space.sdk) == (True, "static")
    card = space.files["README.md"].decode()
    assert "app_file: report/index.html" in card
    assert "layer 2 (blocks.1) of timm/test_vit" in card
    assert "report/index.html" in space.files
    assert verify(place_of("hf/spaces/me/sae/report")) == []


def test_pushed_again_a_folder_holds_the_new_artifact_alone_and_the_card_speaks_of_all(run, remote, tmp_path):
    push(run / "run", "hf/me/sae", include=["autoencoder", "features"])
    smaller = sealed(random_model("topk"), tmp_path / "autoencoder")
    assert set(smaller.files) < set(Artifact.open(run / "run/autoencoder").files)
    push(smaller.path, "hf/me/sae")
    assert verify(place_of("hf/me/sae/autoencoder")) == []
    assert saetool.load("hf/me/sae").n_latents == 16
    card = remote.repositories["models/me/sae"].files["README.md"].decode()
    for words in ("16 for activations of width 6", "latents never fire on them", "](examples.png)"):
        assert words in card


def test_which_of_a_run_is_asked_for(run, remote):
    with pytest.raises(RequestError, match=r"holds autoencoder, features, evaluation, report: say which"):
        push(run / "run", "hf/me/sae")
    with pytest.raises(RequestError, match="--include sweep"):
        push(run / "run", "hf/me/sae", include=["sweep"])
    with pytest.raises(RequestError, match="holds nothing to push"):
        push(run / "run/activations", "hf/me/sae")
    with pytest.raises(RequestError, match=r"hf/OWNER/NAME"):
        push(run / "run/features", "hf/me")
    assert remote.repositories == {}


def test_a_damaged_artifact_is_not_uploaded(run, remote, tmp_path):
    shutil.copytree(run / "run/features", tmp_path / "features")
    with (tmp_path / "features/latents.parquet").open("r+b") as file:
        file.write(b"X")
    with pytest.raises(RequestError, match="Nothing was uploaded"):
        push(tmp_path / "features", "hf/me/sae")
    assert remote.repositories == {}


@pytest.mark.parametrize("there", [False, True], ids=["new", "public already"])
def test_nothing_becomes_public_before_someone_says_yes(run, remote, there):
    from hub_server import Repository

    if there:
        remote.repositories["models/me/sae"] = Repository(private=False)
    asked = []

    def no(question):
        asked.append(question)
        return False

    with pytest.raises(RequestError, match="nobody said yes"):
        push(run / "run/autoencoder", "hf/me/sae", public=not there, confirm=no)
    assert len(asked) == 1
    assert "everyone can read" in asked[0]
    assert not remote.repositories or remote.repositories["models/me/sae"].files == {}
    push(run / "run/autoencoder", "hf/me/sae", public=not there, confirm=lambda question: True)
    assert not remote.repositories["models/me/sae"].private


def test_the_command_pushes_and_does_not_ask_where_nobody_is(run, remote, monkeypatch, capsys):
    code, out, _ = command(monkeypatch, capsys, "push", run / "run", "hf/me/sae", "--include", "autoencoder")
    assert (code, out) == (0, f"pushed: {remote.url}/me/sae\n")
    code, _, err = command(monkeypatch, capsys, "push", run / "run/autoencoder", "hf/me/open", "--public")
    assert code == 2
    assert "nobody said yes" in err
    code, _, _ = command(monkeypatch, capsys, "push", run / "run/autoencoder", "hf/me/open", "--public", "--yes")
    assert code == 0
    assert not remote.repositories["models/me/open"].private


def test_a_person_is_asked_which_of_a_run(run, remote, monkeypatch, capsys):
    asked = []

    def answer(question, default):
        asked.append(default)
        return "autoencoder, evaluation"

    monkeypatch.setattr("typer.prompt", answer)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    code, _, err = command(monkeypatch, capsys, "push", run / "run", "hf/me/sae")
    assert code == 0, err
    assert asked == ["autoencoder,features,evaluation,report"]
    folders = {name.split("/")[0] for name in remote.repositories["models/me/sae"].files}
    assert folders == {"README.md", "autoencoder", "evaluation"}


def test_an_upload_that_broke_off_goes_on_without_what_is_there(run, remote):
    remote.refuse_uploads = True
    with pytest.raises((WorkError, RequestError)):
        push(run / "run/autoencoder", "hf/me/sae")
    remote.refuse_uploads = False
    push(run / "run/autoencoder", "hf/me/sae")
    sent = sum(request.startswith("PUT") for request in remote.requests)
    push(run / "run/autoencoder", "hf/me/sae", include=["autoencoder"])
    assert sum(request.startswith("PUT") for request in remote.requests) == sent  # the server has it


# --- and back --------------------------------------------------------------------------------------------------------


@pytest.fixture
def pushed(remote, tmp_path):
    """An autoencoder on the hub; return it as it is here."""
    artifact = sealed(random_model("topk"), tmp_path / "autoencoder")
    push(artifact.path, "hf/me/sae")
    return artifact


def test_a_place_on_the_hub_is_one_wherever_a_path_is(run, remote, monkeypatch, capsys, tmp_path):
    push(run / "run", "hf/me/sae", include=["autoencoder", "features", "evaluation"])
    model = saetool.load("hf/me/sae")
    assert model.n_latents == 24
    assert saetool.Features("hf/me/sae/features").n_latents == 24
    index = saetool.index("hf/me/sae", run / "run/activations", tmp_path / "features")
    assert index.content["n_latents"] == 24
    code, out, _ = command(monkeypatch, capsys, "verify", "hf/me/sae")
    assert code == 0
    assert out.count("intact") == 3
    code, out, _ = command(monkeypatch, capsys, "info", "hf/me/sae/autoencoder")
    assert code == 0
    assert "kind      autoencoder" in out
    overrides = [f"run={tmp_path / 'other'}", f"activations={run / 'run/activations'}", "autoencoder=hf/me/sae"]
    for name in ("index", "evaluate", "report"):
        code, out, err = command(monkeypatch, capsys, name, run / "run.yaml", *overrides)
        assert code == 0, err
    assert (tmp_path / "other/report/index.html").is_file()
    assert not (tmp_path / "other/autoencoder").exists()


def test_another_tools_file_on_the_hub_is_imported_with_its_revision(remote, tmp_path):
    from hub_server import Repository

    files = {f"layers.5/{p.name}": p.read_bytes() for p in (DATA / "sparsify/layers.5").iterdir()}
    files["layers.5/page/manifest.json"] = b'{"name": "a page of theirs"}'
    remote.repositories["models/they/theirs"] = Repository(False, files, commits=3)
    artifact = saetool.import_autoencoder("hf/they/theirs/layers.5", tmp_path / "theirs")
    origin = artifact.content["origin"]
    assert (origin["source"], origin["format"]) == ("hf/they/theirs/layers.5", "sparsify")
    assert origin["revision"] == remote.repositories["models/they/theirs"].sha
    assert saetool.load("hf/they/theirs/layers.5").n_latents == 16
    again = saetool.load(f"hf/they/theirs/layers.5@{origin['revision']}")
    assert again.n_latents == 16
    with pytest.raises(RequestError, match=r"hf/they/theirs/layers\.5@v9"):
        saetool.load("hf/they/theirs/layers.5@v9")


def test_an_interrupted_download_goes_on_with_the_files_that_are_missing(remote, pushed, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # its client tries again a few times first
    remote.break_off = "autoencoder/model.safetensors"
    with pytest.raises(WorkError, match="it goes on"):
        saetool.load("hf/me/sae")
    remote.break_off = None
    remote.requests.clear()
    assert saetool.load("hf/me/sae").n_latents == 16
    fetched = [request for request in remote.requests if request.startswith("GET /me")]
    assert [request.rpartition("/")[2] for request in fetched] == ["model.safetensors"]


def test_what_arrives_changed_is_refused(remote, pushed):
    remote.change = "autoencoder/model.safetensors"
    with pytest.raises(WorkError, match="did not arrive as it was sealed"):
        saetool.load("hf/me/sae")


def test_without_a_network_what_was_fetched_is_found_and_the_rest_ends_at_once(remote, pushed, monkeypatch):
    saetool.load("hf/me/sae")
    no_hub(monkeypatch)
    assert saetool.load("hf/me/sae").n_latents == 16
    for act in (lambda: saetool.load("hf/me/other"), lambda: push(pushed.path, "hf/me/other")):
        with pytest.raises(WorkError, match=r"127\.0\.0\.1 cannot be reached") as refused:
            act()
        assert str(refused.value).count("\n") == 0


def test_offline_the_cache_serves_and_nothing_is_asked(remote, pushed, monkeypatch):
    from huggingface_hub import constants

    saetool.load("hf/me/sae")
    remote.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert saetool.load("hf/me/sae").n_latents == 16
    with pytest.raises(WorkError, match="HF_HUB_OFFLINE"):
        saetool.load("hf/me/other")
    with pytest.raises(WorkError, match="HF_HUB_OFFLINE"):
        push(pushed.path, "hf/me/other")
    assert remote.requests == []


def test_a_repository_that_is_not_there_is_said_to_be(remote, monkeypatch, capsys):
    code, _, err = command(monkeypatch, capsys, "info", "hf/me/nothing")
    assert code == 2
    assert err == "saetool: hf/me/nothing: is not on the hub, or is private and not yours (`hf auth login`).\n"
    with pytest.raises(RequestError, match=r"a place on the hub is hf/OWNER/NAME"):
        saetool.load("hf/nothing")


def test_the_manifest_that_was_pushed_is_the_one_here(remote, pushed):
    there = remote.repositories["models/me/sae"].files["autoencoder/manifest.json"]
    assert json.loads(there)["id"] == pushed.id
