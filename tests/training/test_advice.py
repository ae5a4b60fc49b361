"""`auto` gives the settings of the page of advice: what the rows can teach and the time allows."""

import pytest
import torch
import yaml

import saetool
from saetool.autoencoders.sparse_settings import SparseSettings
from saetool.config import build_config, load_config
from saetool.errors import RequestError
from saetool.training import TrainingSettings, training_stage
from saetool.training.advice import BATCHES, FIRINGS, LEAST_TOKENS, PASSES, AutoAutoencoder, AutoTraining, advise
from saetool.training.stage import TrainingStage

CPU, AUTO = torch.device("cpu"), AutoAutoencoder(kind="auto")
CONFIG = {"run": "r", "images": {"source": "elpv"}, "backbone": {"name": "demo/vits14"}}


def advised(rows, d_in=384, minutes=10.0, device=CPU, autoencoder=AUTO):
    return advise(autoencoder, AutoTraining(minutes=minutes), rows, d_in, device)


@pytest.mark.parametrize("rows", [500, 20_000, 500_000, 50_000_000])
@pytest.mark.parametrize("minutes", [0.5, 5, 60])
def test_every_latent_is_taught_and_no_row_seen_too_often(rows, minutes):
    found = advised(rows, minutes=minutes)
    latents, training = found.autoencoder.width(384), found.training
    assert training.tokens * 32 / latents >= FIRINGS or found.autoencoder.expansion == 2
    assert training.tokens <= max(PASSES * rows, LEAST_TOKENS) + training.batch_size
    assert BATCHES["cpu"][0] <= training.batch_size <= BATCHES["cpu"][1]
    assert training.schedule == "linear"


def test_more_time_and_more_rows_never_make_a_narrower_dictionary():
    widths = [advised(300_000, minutes=minutes).autoencoder.expansion for minutes in (0.1, 1, 10, 100)]
    assert widths == sorted(widths)
    assert widths[0] < widths[-1]
    widths = [advised(rows, minutes=60).autoencoder.expansion for rows in (10_000, 100_000, 1_000_000)]
    assert widths == sorted(widths)
    assert widths[0] < widths[-1]


def test_what_is_given_stays_and_what_is_auto_follows_from_it():
    given = TrainingSettings(tokens=1_000_000, lr=5e-4)
    assert advise(AUTO, given, 500_000, 384, CPU).training is given
    narrow = SparseSettings(kind="sparse", n_latents=256)
    found = advised(10_000_000, minutes=1, autoencoder=narrow)
    assert found.autoencoder is narrow
    assert found.training.tokens > advised(10_000_000, minutes=1).training.tokens


def test_more_cores_ask_for_the_same(monkeypatch):
    here = advised(300_000).training
    monkeypatch.setattr("saetool.distributed.cores", lambda: 64)
    assert advised(300_000).training == here


def test_narrow_rows_have_fewer_active_latents():
    assert advised(1617, d_in=64).autoencoder.activation.k == 8
    assert advised(100, d_in=4).autoencoder.activation.k == 1


@pytest.mark.parametrize("given", ["auto", {"minutes": 2}])
def test_a_config_may_say_auto_and_its_store_decides(tmp_path, given):
    config = build_config({**CONFIG, "autoencoder": "auto", "training": given}, "x")
    store = saetool.write_store(tmp_path / "store", torch.randn(50, 4, 16))
    stage = training_stage(store.artifact, config.autoencoder, config.training, 0, CPU)
    assert isinstance(stage, TrainingStage)
    minutes = 10 if given == "auto" else 2
    wanted = advised(180, d_in=16, minutes=minutes)
    assert stage.plan.autoencoder.model_copy(update={"codes": "auto"}) == wanted.autoencoder
    assert stage.plan.settings == wanted.training


def test_a_call_may_say_auto_and_records_what_it_took(tmp_path, monkeypatch):
    monkeypatch.setattr("saetool.training.advice.LEAST_TOKENS", 3_000)
    rows = torch.randn(400, 16, generator=torch.Generator().manual_seed(0))
    made = saetool.train(rows, "auto", minutes=0.0005, out=tmp_path / "model")
    assert made.config["training"]["tokens"] == advised(360, d_in=16, minutes=0.0005).training.tokens
    assert made.config["training"]["schedule"] == "linear"
    assert made.config["autoencoder"]["activation"] == {"kind": "topk", "k": 2}


@pytest.mark.parametrize(
    ("autoencoder", "training", "keywords", "words"),
    [
        ("auto", "auto", {"tokens": 512}, "minutes decides about tokens too"),
        ("auto", "auto", {"minutes": -1}, "training.minutes: Input should be greater than 0"),
        ("auto", {"minutes": 1}, {"k": 4}, "autoencoder.k: unknown key"),
    ],
)
def test_a_keyword_beside_auto_is_never_dropped(autoencoder, training, keywords, words, tmp_path):
    with pytest.raises(RequestError, match=words):
        saetool.train(torch.randn(40, 16), autoencoder, training, tmp_path / "model", **keywords)


def test_an_override_beside_auto_leaves_it_auto(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text(yaml.safe_dump({**CONFIG, "autoencoder": "auto", "training": "auto"}))
    found = load_config(path, ["training.held_out=0.2"])
    assert found.training == AutoTraining(held_out=0.2)
    assert found.autoencoder == AUTO


@pytest.mark.parametrize(
    ("training", "words"),
    [
        ({"minutes": 5, "lr": 1e-3}, "minutes decides about lr too: leave them out, or give tokens"),
        ({"minutes": 0}, "training.minutes: Input should be greater than 0"),
        ({"tokens": 5, "lrr": 1}, "training.lrr: unknown key. Did you mean training.lr"),
        ("soon", "training: Input should be a section"),
    ],
)
def test_wrong_requests_name_the_key(training, words):
    with pytest.raises(RequestError, match=words):
        build_config({**CONFIG, "autoencoder": "auto", "training": training}, "x")


def test_live_rows_cannot_be_counted(tmp_path):
    config = build_config({**CONFIG, "autoencoder": "auto", "training": "auto", "activations": "live"}, "x")
    from saetool.pipeline import Run

    with pytest.raises(RequestError, match="cannot be auto with activations: live"):
        Run(config, "x").members[0].training()
