"""Autoencoders of other tools compute here what they compute there: same support, values to 1e-6.

The files are the tools' own, made by make_data.py; `expected` beside each is what the tool computed from `x`.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from saetool.errors import RequestError
from saetool.exchange import formats
from saetool.exchange.model import from_model, to_model
from saetool.training.heldout import reconstruct

DATA = Path(__file__).parent / "data"
SOURCES = sorted(
    [path.parent.relative_to(DATA) for path in DATA.glob("*/*/expected.safetensors")]
    + [
        next(p for p in path.parent.glob(f"{path.stem.removesuffix('-expected')}.p*")).relative_to(DATA)
        for path in DATA.glob("*/*-expected.safetensors")
    ]
)
FORMATS = {"sae_lens_5": "sae_lens"}
"""Of folders that are named after a version too."""
TOLERANCE = 1e-6


def expected(source: Path) -> tuple[dict[str, torch.Tensor], dict]:
    """Return what the tool computed, and what must be said beside its file."""
    place = DATA / source
    stem = place / "expected" if place.is_dir() else place.with_name(f"{place.stem}-expected")
    facts = json.loads(Path(f"{stem}.json").read_text())
    return load_file(f"{stem}.safetensors"), facts.get("given", {})


def close(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Say whether two tensors agree relative to the largest value."""
    return float((found - wanted).abs().max()) <= TOLERANCE * float(wanted.abs().max())


def test_every_tool_has_files_here():
    counts = {tool: len([s for s in SOURCES if s.parts[0] == tool]) for tool in {s.parts[0] for s in SOURCES}}
    assert counts == {
        "sae_lens": 14,
        "sae_lens_5": 4,
        "sparsify": 1,
        "saev": 1,
        "overcomplete": 7,
        "dictionary_learning": 7,
    }


@pytest.mark.parametrize("source", SOURCES, ids=str)
def test_codes_and_reconstructions_are_the_tools_own(source):
    wanted, given = expected(source)
    found = formats.read(DATA / source, None, given)
    assert found.format == FORMATS.get(source.parts[0], source.parts[0])
    model = found.model
    codes, x_hat = reconstruct(model, wanted["x"])
    z = model.encode(wanted["x"])
    assert torch.equal(codes.dense() != 0, wanted["codes"] != 0)
    assert 0 < int((wanted["codes"] != 0).sum()) < wanted["codes"].numel()
    assert close(codes.dense(), wanted["codes"])
    assert close(z, wanted["codes"])
    assert close(x_hat.detach(), wanted["x_hat"])
    assert close(model(wanted["x"]).detach(), wanted["x_hat"])


@pytest.mark.parametrize("source", SOURCES, ids=str)
def test_each_is_read_the_same_when_its_format_is_named(source):
    _, given = expected(source)
    named = formats.read(DATA / source, FORMATS.get(source.parts[0], source.parts[0]), given)
    assert torch.equal(named.plain.W_enc, formats.read(DATA / source, None, given).plain.W_enc)


@pytest.mark.parametrize("source", SOURCES, ids=str)
def test_there_and_back_into_the_plain_form_loses_nothing(source):
    _, given = expected(source)
    plain = formats.read(DATA / source, None, given).plain
    again = from_model(to_model(plain), "model")
    for name in ("W_enc", "b_enc", "W_dec", "b_dec", "r_mag", "b_mag", "mean"):
        before, after = getattr(plain, name), getattr(again, name)
        assert after is None or torch.equal(after, torch.zeros_like(after) if before is None else before), name
    assert (again.activation, again.k, again.relu, again.normalization) == (
        plain.activation,
        plain.k,
        plain.relu,
        plain.normalization,
    )
    if plain.threshold is not None:
        assert close(again.threshold, plain.threshold)


@pytest.mark.parametrize("source", SOURCES, ids=str)
def test_what_changes_numbers_is_said(source):
    _, given = expected(source)
    said = formats.read(DATA / source, None, given).plain.converted
    assert {"dtype", "normalization", "decoder bias"} <= set(said)


def test_a_bfloat16_file_says_so():
    plain = formats.read(DATA / "sae_lens/standard_bfloat16").plain
    assert "bfloat16" in plain.converted["dtype"]
    assert plain.W_enc.dtype == torch.float32


def test_a_size_that_contradicts_the_file_is_refused():
    with pytest.raises(RequestError, match="nb_concepts 99, its weights have 16"):
        formats.read(DATA / "overcomplete/topk.pth", None, {"class": "TopKSAE", "top_k": 4, "nb_concepts": 99})


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("topk", {}, "give class="),
        ("topk", {"class": "TopKSAE"}, "give top_k="),
        ("jump", {"class": "TopKSAE", "top_k": 3}, "has thresholds, so it is no TopKSAE"),
        ("batchtopk", {"class": "BatchTopKSAE", "top_k": 40}, "give running_threshold="),
        ("topk", {"class": "TopKSAE", "top_k": 4, "normalization": "l3"}, "normalization 'l3'"),
        ("topk", {"class": "TopKSAE", "topk": 4}, "topk=: not asked of overcomplete"),
    ],
)
def test_what_an_overcomplete_file_does_not_say_is_asked_for(name, given, message):
    with pytest.raises(RequestError, match=message):
        formats.read(DATA / f"overcomplete/{name}.pth", None, given)
