"""Families that users register: what is taken, what is refused, and how another process comes to know them."""

from typing import Literal

import pytest
import torch
from pydantic import PositiveInt
from torch import nn

import saetool
from saetool.autoencoders import Autoencoder, FamilySettings, Loss, Phase, families
from saetool.config import load_config, sweep_members
from saetool.errors import RequestError
from saetool.settings import Settings

ROWS = torch.randn(200, 6, generator=torch.Generator().manual_seed(0))
SHORT = {"tokens": 128, "batch_size": 32, "held_out": 0.2}


class PairSettings(FamilySettings):
    kind: Literal["pair"] = "pair"
    gain: PositiveInt = 1


class Pair(Autoencoder):
    """Every latent sees and says one direction."""

    def __init__(self, settings, d_in):
        super().__init__()
        self.settings, self.d_in, self.n_latents = settings, d_in, settings.width(d_in)
        self.W = nn.Parameter(torch.randn(self.n_latents, d_in) / d_in)

    def encode(self, x):
        return self.settings.gain * torch.relu(x @ self.W.T)

    def decode(self, z):
        return z @ self.W

    def loss(self, x, step, generator):
        return Loss({"reconstruction": (self(x) - x).square().sum(1).mean()})


@pytest.fixture(autouse=True)
def forgotten(monkeypatch):
    """Registrations end with the test."""
    for name in ("known", "places"):
        monkeypatch.setattr(families.REGISTERED, name, {})


def without_parameters(self, settings, d_in):
    Autoencoder.__init__(self)
    self.d_in, self.n_latents = d_in, settings.width(d_in)


def altered(**methods):
    return type("Altered", (Pair,), {"__module__": __name__, **methods})


def test_a_registered_family_is_trained_by_keywords_settings_and_mappings_alike(tmp_path):
    saetool.register_family("pair", PairSettings, Pair)
    given = (
        {"kind": "pair", "n_latents": 4, "gain": 2},
        {"autoencoder": PairSettings(n_latents=4, gain=2)},
        {"autoencoder": {"kind": "pair", "n_latents": 4}, "gain": 2},
    )
    made = [saetool.train(ROWS, **how, **SHORT, out=tmp_path / str(i)) for i, how in enumerate(given)]
    assert len({artifact.id for artifact in made}) == 1
    assert made[0].content["settings"] == {"kind": "pair", "n_latents": 4, "expansion": None, "gain": 2}
    model = saetool.load(made[0])
    assert isinstance(model, Pair)
    torch.testing.assert_close(model.encode(ROWS), 2 * torch.relu(ROWS @ model.W.T))
    with pytest.raises(RequestError, match="not one of the sparse family"):
        saetool.export_autoencoder(made[0], tmp_path / "theirs", "safetensors")


def test_a_training_that_was_stopped_goes_on_to_the_same_artifact(tmp_path, monkeypatch):
    saetool.register_family("pair", PairSettings, Pair)
    given = {"kind": "pair", "n_latents": 4, **SHORT, "tokens": 32 * 20, "log_every": 5, "checkpoint_minutes": 0}
    whole = saetool.train(ROWS, **given, out=tmp_path / "whole")
    loss, failing = Pair.loss, {"at": 13}

    def stops(self, x, step, generator):
        if step.number == failing["at"]:
            raise KeyboardInterrupt
        return loss(self, x, step, generator)

    monkeypatch.setattr(Pair, "loss", stops)
    with pytest.raises(KeyboardInterrupt):
        saetool.train(ROWS, **given, out=tmp_path / "stopped")
    failing["at"] = 3  # which is behind it now
    assert saetool.train(ROWS, **given, out=tmp_path / "stopped").id == whole.id


def test_a_sweep_varies_its_keys():
    saetool.register_family("pair", PairSettings, Pair)
    config = load_config("demo", ["autoencoder={kind: pair, expansion: 2}", "sweep={autoencoder.gain: [1, 2]}"])
    assert {name: member.autoencoder for name, member in sweep_members(config)} == {
        "gain=1": PairSettings(expansion=2, gain=1),
        "gain=2": PairSettings(expansion=2, gain=2),
    }


def test_a_config_takes_it_and_names_it_among_the_kinds():
    saetool.register_family("pair", PairSettings, Pair)
    config = load_config("demo", ["autoencoder={kind: pair, expansion: 2, gain: 3}"])
    assert config.autoencoder == PairSettings(expansion=2, gain=3)
    assert config.model_dump(mode="json")["autoencoder"]["gain"] == 3
    with pytest.raises(
        RequestError, match=r"autoencoder\.kind: 'pear' is unknown\. Did you mean pair\? .*variational, pair, t"
    ):
        load_config("demo", ["autoencoder={kind: pear, expansion: 2}"])
    with pytest.raises(RequestError, match=r"gian: unknown key\. Did you mean .*gain.*Valid here: ex"):
        load_config("demo", ["autoencoder={kind: pair, expansion: 2, gian: 3}"])
    with pytest.raises(RequestError, match=r"autoencoder.*exactly one of n_latents and expansion"):
        load_config("demo", ["autoencoder={kind: pair}"])


@pytest.mark.parametrize(
    ("overrides", "activation"),
    [
        (["autoencoder={kind: topk, k: 3, expansion: 2}", "autoencoder.activation={kind: relu}"], {"kind": "relu"}),
        (["autoencoder={kind: topk, k: 3, expansion: 2}", "autoencoder.activation=relu"], {"kind": "relu"}),
        (
            ["autoencoder={kind: relu, expansion: 2}", "autoencoder.activation={kind: topk, k: 4}"],
            {"kind": "topk", "k": 4},
        ),
        (["autoencoder.kind=topk", "autoencoder.k=5", "autoencoder.penalty={kind: none}"], {"kind": "topk", "k": 5}),
    ],
)
def test_of_two_activations_the_one_given_later_is_trained(overrides, activation):
    found = load_config("demo", overrides).autoencoder
    assert (found.kind, found.activation.model_dump(exclude_unset=True)) == ("sparse", activation)


def test_two_activations_given_at_once_are_refused(tmp_path):
    for given in ({"kind": "topk", "k": 3}, "topk"):
        with pytest.raises(RequestError, match=r"kind relu and an activation of kind 'topk' contradict each other"):
            saetool.train(ROWS, kind="relu", activation=given, n_latents=8, **SHORT, out=tmp_path / "model")


def test_a_kind_is_named_by_its_word_alone_and_a_near_one_is_suggested():
    with pytest.raises(RequestError, match=r"autoencoder\.activation\.k: missing"):
        load_config("demo", ["autoencoder=topk"])
    with pytest.raises(RequestError, match=r"'TopK' is unknown\. Did you mean topk\? One of sparse, .*jump_relu"):
        load_config("demo", ["autoencoder.kind=TopK"])


def test_a_familys_own_activation_and_k_stay_where_they_are():
    given = {"kind": "pair", "activation": {"kind": "topk"}, "k": 3}
    assert families.spelled_out(given) == given
    assert families.spelled_out(given | {"kind": "sparse"})["activation"] == {"kind": "topk", "k": 3}


def test_what_a_process_does_not_know_it_says_with_the_module_that_is_missing(tmp_path, monkeypatch):
    saetool.register_family("pair", PairSettings, Pair)
    made = saetool.train(ROWS, kind="pair", n_latents=4, **SHORT, out=tmp_path / "model")
    families.REGISTERED.known.clear()
    with pytest.raises(RequestError, match=r"'pair' was registered by the module .*test_families.* SAETOOL_FAMILIES="):
        saetool.load(made)
    monkeypatch.setenv("SAETOOL_FAMILIES", "no_such_module")
    with pytest.raises(RequestError, match="SAETOOL_FAMILIES: no_such_module failed: ModuleNotFoundError"):
        saetool.load(made)


def test_a_family_that_has_changed_since_is_said(tmp_path):
    saetool.register_family("pair", PairSettings, Pair)
    made = saetool.train(ROWS, kind="pair", n_latents=4, **SHORT, out=tmp_path / "model")
    fewer = type("PairSettings", (FamilySettings,), {"__annotations__": {"kind": Literal["pair"]}, "kind": "pair"})
    families.REGISTERED.known["pair"] = families.Family(fewer, Pair)
    with pytest.raises(RequestError, match=r"its settings are not those of pair here: pair\.gain: Extra inputs"):
        saetool.load(made)


SHIPPED = """
from typing import Literal
import saetool
from saetool.autoencoders.linear import Linear, LinearSettings
class Mine(LinearSettings):
    kind: Literal["{name}"] = "{name}"
saetool.register_family("{name}", Mine, Linear)
"""


def test_a_listed_module_and_the_entry_point_of_a_package_register(tmp_path, monkeypatch):
    (tmp_path / "family_of_mine.py").write_text(SHIPPED.format(name="theirs"))
    (tmp_path / "family_shipped.py").write_text(SHIPPED.format(name="shipped"))
    facts = tmp_path / "family_shipped-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: family-shipped\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text("[saetool.families]\nshipped = family_shipped\nother = family_shipped\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("SAETOOL_FAMILIES", "family_of_mine")
    for kind in ("theirs", "shipped"):
        made = saetool.train(ROWS, kind=kind, solver="closed_form", n_latents=2, **SHORT, out=tmp_path / kind)
        assert made.content["family"] == kind
    with pytest.raises(RequestError, match=r"entry point other of saetool.families names .*, which registers no other"):
        saetool.train(ROWS, kind="other", n_latents=2, **SHORT, out=tmp_path / "other")


@pytest.mark.parametrize("name", ["sparse", "topk", "auto", "trained", "a/b", "", "1st", 7, None])
def test_names_that_mean_something_else_are_refused(name):
    with pytest.raises(RequestError, match="cannot name a family of autoencoders"):
        saetool.register_family(name, PairSettings, Pair)


def test_a_name_means_one_family():
    saetool.register_family("pair", PairSettings, Pair)
    saetool.register_family("pair", PairSettings, Pair)  # a notebook's cell, run again
    another = type("Another", (PairSettings,), {})
    with pytest.raises(RequestError, match=r"pair is registered already, by .*\.PairSettings: take another"):
        saetool.register_family("pair", another, Pair)


@pytest.mark.parametrize("given", [Settings, dict, PairSettings(n_latents=1), None])
def test_settings_that_are_none_are_refused(given):
    with pytest.raises(RequestError, match=r"must be a class derived from saetool.autoencoders.FamilySettings, not"):
        saetool.register_family("pair", given, Pair)


def test_settings_of_another_kind_and_builders_that_are_none_are_refused():
    with pytest.raises(RequestError, match=r'pear: its settings need the field kind: Literal\["pear"\] = "pear"'):
        saetool.register_family("pear", PairSettings, Pair)
    with pytest.raises(RequestError, match="pair: build must make a model of settings and d_in, not 3"):
        saetool.register_family("pair", PairSettings, 3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (
            lambda settings, d_in: nn.Linear(2, 2),
            "its build returned no saetool.autoencoders.Autoencoder but a torch",
        ),
        (lambda settings, d_in: Pair(settings, d_in + 1), "its model has d_in 7 where 6 is meant"),
        (lambda settings, d_in: 1 / 0, "its build failed: ZeroDivisionError"),
        (
            altered(encode=lambda self, x: x),
            r"encode of \[2, 3, 6\] must return a floating-point tensor \[2, 3, 4\], and returned \[2",
        ),
        (
            altered(encode=lambda self, x: Pair.encode(self, x)[0]),
            r"encode .* and returned \[3, 4\]",
        ),
        (altered(encode=lambda self, x: None), "encode of .* and returned NoneType"),
        (
            altered(decode=lambda self, z: z @ z.mT),
            r"decode of \[2, 3, 4\] must return a floating-point tensor \[2, 3, 6\]",
        ),
        (altered(encode=lambda self, x: x @ x), "encode failed: RuntimeError"),
        (
            altered(encode=lambda self, x: Pair.encode(self, nn.functional.dropout(x, training=self.training))),
            "encode gives other latents for the same rows each time",
        ),
        (altered(encode=lambda self, x: Pair.encode(self, x) > 0), r"and returned \[2, 3, 4\] of torch.bool"),
        (altered(encode=lambda self, x: Pair.encode(self, x) / 0), "encode gives latents that are not finite"),
        (altered(encode=lambda self, x: Pair.encode(self, x.sub_(1))), "encode changes the rows that it is given"),
        (
            altered(encode=lambda self, x: Pair.encode(self, x - x.flatten(0, -2).mean(0))),
            "encode gives a row other latents beside other rows, or after eval",
        ),
        (
            altered(encode=lambda self, x: Pair.encode(self, x) * (2 if self.training else 1)),
            "encode gives a row other latents beside other rows, or after eval",
        ),
        (altered(phases=lambda self: ["train"]), "phases must return a list of saetool.autoencoders.Phase"),
        (altered(phases=lambda self: [Phase("a"), Phase("b", -1.0)]), r"phases must have positive shares, .*-1\.0"),
        (altered(phases=lambda self: [Phase("a", float("nan"))]), "phases must have positive shares"),
        (
            altered(make_optimizer=lambda self, lr, betas, eps: None),
            "make_optimizer of Altered must return a torch.optim.Optimizer, not a NoneType",
        ),
        (altered(enter=lambda self, phase: self.nothing), "Altered.* failed: AttributeError"),
        (altered(__init__=without_parameters), "its model has no parameters"),
        (altered(loss=lambda self, x, generator: None), r"loss is called with \(x, step, generator\), which its own"),
        (altered(loss=lambda self, x, step, generator: 1 / 0), r"failed: ZeroDivisionError: .*test_families.py, line"),
        (
            altered(loss=lambda self, x, step, generator: Loss({})),
            "a Loss has named parts and metrics, .*there is none",
        ),
        (
            altered(loss=lambda self, x, step, generator: Loss({"error": (self(x) - x).square().sum(1)})),
            "a Loss has named parts and metrics, each a tensor of one number without axes: 'error' is none",
        ),
        (
            altered(loss=lambda self, x, step, generator: Loss({"error": x.sum()})),
            "the loss of Altered depends on no parameter that learns",
        ),
        (altered(loss=lambda self, x, step, generator: x.sum()), "the loss of Altered is a torch.Tensor: return a"),
    ],
)
def test_a_model_that_does_not_answer_as_one_is_refused_in_a_sentence(build, said, tmp_path):
    saetool.register_family("pair", PairSettings, build)
    with pytest.raises(RequestError, match=said) as error:
        saetool.train(ROWS, kind="pair", n_latents=4, **SHORT, out=tmp_path / "model")
    assert "\n" not in str(error.value)
