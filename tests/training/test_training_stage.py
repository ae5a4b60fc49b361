"""What the stage refuses before any work, what it says, and where numbers go."""

import sys

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

import saetool
from saetool import distributed
from saetool.activations import TensorStream, held_out_mask
from saetool.autoencoders.contractive import ContractiveSettings
from saetool.autoencoders.corruption import GaussianNoise
from saetool.autoencoders.denoising import DenoisingSettings
from saetool.autoencoders.dense import DenseSettings
from saetool.autoencoders.families import AutoencoderSettings
from saetool.autoencoders.linear import LinearSettings
from saetool.autoencoders.sparse_settings import L1Penalty, ReluActivation, SparseSettings
from saetool.autoencoders.variational import VariationalSettings
from saetool.config import RunConfig, sweep_members
from saetool.errors import RequestError
from saetool.training import TrainingSettings, train, training_stage
from saetool.training.source import GivenRows, StoreSource


@pytest.fixture
def stream():
    x = torch.randn(400, 8, generator=torch.Generator().manual_seed(0))
    return TensorStream(x[:350], x[350:], batch_size=50, seed=1)


@pytest.fixture
def sparse():
    return TypeAdapter(AutoencoderSettings).validate_python({"kind": "sparse", "n_latents": 16, "initial_l0": 4})


def how(**changes) -> TrainingSettings:
    return TrainingSettings(**({"tokens": 500, "batch_size": 50, "log_every": 5} | changes))


class FakeStore:
    """A store's manifest, as far as choosing a site goes."""

    path = "runs/x/activations"
    content = {  # noqa: RUF012
        "sites": [
            {"folder": "layer-10", "layer": 10, "module": "blocks.9", "d": 384},
            {"folder": "blocks.3.mlp", "layer": None, "module": "blocks.3.mlp", "d": 1536},
        ]
    }


def test_a_site_is_chosen_by_layer_or_module_and_an_open_choice_is_refused():
    source = StoreSource(FakeStore())  # pyright: ignore[reportArgumentType]
    assert source.site(how(layer=10))["d"] == 384
    assert source.site(how(layer="blocks.9"))["d"] == 384
    assert source.site(how(layer="blocks.3.mlp"))["d"] == 1536
    for layer in (None, 11, "blocks.4"):
        with pytest.raises(RequestError, match=r"holds 10, blocks.3.mlp"):
            source.check(how(layer=layer))


def test_autocast_trains_a_sigmoid_model(stream, sparse, tmp_path):
    keys = {"activation": {"kind": "sigmoid"}, "penalty": {"kind": "kl", "rho": 0.1}}
    settings = TypeAdapter(AutoencoderSettings).validate_python(sparse.model_dump() | keys)
    fvu = {}
    for precision in ("fp32", "bf16"):
        made = train(stream, settings, how(precision=precision, lr=1e-2), tmp_path / precision)
        fvu[precision] = made.content["final"]["fvu"]
    assert fvu["bf16"] != fvu["fp32"]
    assert fvu["bf16"] == pytest.approx(fvu["fp32"], rel=0.05)


def test_a_batch_that_processes_and_pieces_cannot_share_is_refused(stream, sparse, monkeypatch):
    training_stage(stream, sparse, how(accumulate=10))
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    with pytest.raises(RequestError, match=r"batch_size 50.*2 processes × 10 pieces.*multiple of 20"):
        training_stage(stream, sparse, how(accumulate=10))


def test_a_stream_with_other_batches_is_refused(stream, sparse, tmp_path):
    with pytest.raises(RequestError, match=r"batch_size is 25.*50 rows"):
        train(stream, sparse, how(batch_size=25), tmp_path / "model")


def test_another_request_at_the_same_place_is_refused_but_not_another_logbook(stream, sparse, tmp_path):
    first = train(stream, sparse, how(), tmp_path / "model")
    again = train(stream, sparse, how(checkpoint_minutes=9), tmp_path / "model")
    assert again.id == first.id
    with pytest.raises(RequestError, match=r"training.lr: 0.001 there, 0.002 asked"):
        train(stream, sparse, how(lr=2e-3), tmp_path / "model")


def test_other_rows_are_another_request(sparse, tmp_path):
    x = torch.randn(400, 8, generator=torch.Generator().manual_seed(0))
    train(TensorStream(x[:350], batch_size=50), sparse, how(), tmp_path / "model")
    with pytest.raises(RequestError, match="what it reads: other rows or files than there"):
        train(TensorStream(x[50:], batch_size=50), sparse, how(), tmp_path / "model")


def test_a_stream_in_another_order_or_with_other_held_out_rows_is_other_work(sparse, tmp_path):
    x = torch.randn(400, 8, generator=torch.Generator().manual_seed(0))
    train(TensorStream(x[:300], x[300:350], batch_size=50, seed=1), sparse, how(), tmp_path / "model")
    for other in (TensorStream(x[:300], x[300:350], 50, seed=2), TensorStream(x[:300], x[300:], 50, seed=1)):
        with pytest.raises(RequestError, match="holds something else"):
            train(other, sparse, how(), tmp_path / "model")


def test_one_line_says_what_runs_where(stream, sparse, tmp_path, capfd):
    artifact = train(stream, sparse, how(), tmp_path / "model")
    line = artifact.notes["where"]
    for fact in ("sparse 8 → 16", "10 steps of 50 rows", "fp32", "1 process on"):
        assert fact in line
    assert line in capfd.readouterr().err


def test_a_dry_run_estimates_from_real_steps(stream, sparse, tmp_path):
    estimate = training_stage(stream, sparse, how(tokens=499)).estimate(tmp_path)
    parameters = 2 * 8 * 16 + 16 + 8
    assert (estimate["tokens"], estimate["steps"], estimate["parameters"]) == (500, 10, parameters)
    assert estimate["bytes_on_disk"] >= 4 * parameters
    assert estimate["seconds"] > 0


def test_tensorboard_gets_every_curve(stream, sparse, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(stream, sparse, how(tensorboard=True), tmp_path / "model")
    events = EventAccumulator(str(tmp_path / "model.tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [5, 10]
    assert {"held_out/fvu", "train/parts/reconstruction", "train/lr"} <= set(events.Tags()["scalars"])


@pytest.mark.parametrize(
    ("package", "settings"), [("tensorboard", {"tensorboard": True}), ("wandb", {"wandb": "project"})]
)
def test_a_missing_tracker_says_how_to_get_it(stream, sparse, tmp_path, monkeypatch, package, settings):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    with pytest.raises(RequestError, match=rf"{package} is not installed .*pip install 'saetool\[track\]'"):
        train(stream, sparse, how(**settings), tmp_path / "model")


def test_a_link_and_a_tilde_lead_to_the_artifact(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = TypeAdapter(AutoencoderSettings).validate_python({"kind": "linear", "n_latents": 2})
    stream = TensorStream(torch.randn(90, 4), torch.randn(10, 4), batch_size=10, seed=0)
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for out, place in (("~/home", "home"), (tmp_path / "link", "real")):
        made = train(stream, settings, TrainingSettings(tokens=20, batch_size=10), out)
        assert made.path == tmp_path / place


@pytest.mark.parametrize("wrong", [[[1.0, 2.0]], {"rows": 1}])
def test_what_is_no_source_is_refused_in_a_sentence(wrong, tmp_path):
    settings = TypeAdapter(AutoencoderSettings).validate_python({"kind": "linear", "n_latents": 2})
    with pytest.raises(RequestError, match=r"train takes no (list|dict): give rows .*, a store"):
        train(wrong, settings, TrainingSettings(tokens=10), tmp_path / "out")


def rows_in_memory():
    return torch.randn(60, 5, 8, generator=torch.Generator().manual_seed(0))


SHORT = {"kind": "topk", "k": 2, "n_latents": 16, "tokens": 640, "batch_size": 32, "held_out": 0.3}


def test_rows_in_memory_train_the_model_that_a_store_of_them_trains_but_for_the_order_and_hold_out_the_same(tmp_path):
    rows = rows_in_memory()
    store = saetool.write_store(tmp_path / "store", rows)
    there = saetool.train(store, **SHORT, out=tmp_path / "there")
    here = saetool.train(rows, **SHORT, out=tmp_path / "here")
    assert here.content["final"]["rows"] == there.content["final"]["rows"] > 0
    assert here.content["final"]["fvu"] == pytest.approx(there.content["final"]["fvu"], abs=0.1)

    wanted = held_out_mask(store.digests, 0, 0.3)
    stream = GivenRows.of(rows).open(TrainingSettings(tokens=64, batch_size=32, held_out=0.3), 0, torch.device("cpu"))
    held = torch.cat(list(stream.held_out()))
    torch.testing.assert_close(held, rows[torch.from_numpy(wanted)].flatten(0, 1))


@pytest.mark.parametrize(
    "form",
    [
        lambda rows: rows.numpy(),
        lambda rows: rows.numpy().astype(np.float64),
        lambda rows: rows.clone().requires_grad_(),
        lambda rows: np.asfortranarray(rows.numpy()),
    ],
)
def test_rows_in_whatever_form_are_the_same_training(form, tmp_path):
    wanted = saetool.train(rows_in_memory(), **SHORT, out=tmp_path / "a")
    assert saetool.train(form(rows_in_memory()), **SHORT, out=tmp_path / "b").id == wanted.id
    assert saetool.train(rows_in_memory(), **SHORT, out=tmp_path / "a").notes == wanted.notes  # done already
    with pytest.raises(RequestError, match="already holds something else"):
        saetool.train(rows_in_memory() + 1, **SHORT, out=tmp_path / "a")


def test_keywords_mappings_settings_and_a_mixture_of_them_are_one_request(tmp_path):
    given = {
        "keywords": ((), SHORT),
        "mappings": (
            (
                {"kind": "sparse", "activation": {"kind": "topk", "k": 2}, "n_latents": 16},
                {"tokens": 640, "batch_size": 32, "held_out": 0.3},
            ),
            {},
        ),
        "settings": (
            (
                SparseSettings(kind="sparse", activation={"kind": "topk", "k": 2}, n_latents=16),
                TrainingSettings(tokens=640, batch_size=32, held_out=0.3),
            ),
            {},
        ),
        "settings and a key": (
            (
                SparseSettings(kind="sparse", activation={"kind": "topk", "k": 9}, n_latents=16),
                {"tokens": 640, "batch_size": 32, "held_out": 0.3},
            ),
            {"k": 2},
        ),
        "mixture": (
            ({"kind": "topk", "n_latents": 16}, TrainingSettings(tokens=999, held_out=0.3)),
            {"k": 2, "tokens": 640, "batch_size": 32},
        ),
    }
    ids = {
        saetool.train(rows_in_memory(), *places, out=tmp_path / name, **keywords).id
        for name, (places, keywords) in given.items()
    }
    assert len(ids) == 1


@pytest.mark.parametrize(
    ("family", "more"),
    [
        (LinearSettings, {}),
        (DenseSettings, {}),
        (DenoisingSettings, {"corruption": GaussianNoise(sigma=0.1)}),
        (ContractiveSettings, {"weight": 0.1}),
        (VariationalSettings, {}),
        (SparseSettings, {"activation": ReluActivation(), "penalty": L1Penalty(weight=0.1)}),
    ],
)
def test_settings_whose_kind_is_their_default_are_the_request_of_their_mapping(family, more, tmp_path):
    asked = family(n_latents=4, **more)
    training = {"tokens": 64, "batch_size": 32, "held_out": 0.3}
    made = {
        name: saetool.train(rows_in_memory(), form, training, tmp_path / name)
        for name, form in (("settings", asked), ("mapping", asked.model_dump()))
    }
    assert made["settings"].id == made["mapping"].id


def test_a_sweep_keeps_the_kind_of_settings():
    values = {"run": "a", "images": {"source": "digits"}, "backbone": {"name": "pixels/gray"}}
    training = TrainingSettings(tokens=64, batch_size=32)
    config = RunConfig(
        **values,
        autoencoder=LinearSettings(n_latents=4),
        training=training,
        sweep={"autoencoder.n_latents": [2, 3]},
    )
    members = [member.autoencoder for _, member in sweep_members(config)]
    assert members == [LinearSettings(n_latents=2), LinearSettings(n_latents=3)]


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"epochs": 3}, "train: epochs: unknown key. Did you mean training.tokens? Write training.tokens="),
        ({"d_sae": 64}, "train: d_sae: unknown key. Did you mean autoencoder.n_latents?"),
        ({"lr": "fast"}, "train: training.lr: Input should be a valid number"),
        ({"k": -1}, "train: autoencoder.activation.k: Input should be greater than 0 (given: -1)"),
        ({"kind": "topkk"}, "train: autoencoder.kind: 'topkk' is unknown. Did you mean topk? One of"),
        ({"tokens": None}, "train: training.tokens: Input should be a valid integer (given: None)"),
        ({"expension": 4}, "train: autoencoder.expension: unknown key. Did you mean autoencoder.expansion?"),
        (
            {"autoencoder": {"solver": "gradient"}},
            "train: autoencoder.solver: unknown key. It belongs to kind linear, variational.",
        ),
        (
            {"autoencoder": {"penalty": {"weight": 3}}},
            "train: autoencoder.penalty.kind: missing. One of l1, l0, kl, none.",
        ),
        ({"training": 3}, "train: training: Input should be a section, keys with their values (given: 3)"),
    ],
)
def test_a_wrong_keyword_gets_the_message_of_a_config(keywords, message, tmp_path):
    with pytest.raises(RequestError) as caught:
        saetool.train(rows_in_memory(), **(SHORT | keywords), out=tmp_path / "a")
    assert message in str(caught.value)
    assert not (tmp_path / "a").exists()
