"""A source becomes a sealed autoencoder with its provenance, at the site that it comes from or that is meant."""

import json
import pickle
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import saetool
from saetool import cli
from saetool.activations.from_tensors import write_store
from saetool.artifacts import Artifact, verify
from saetool.errors import RequestError, WorkError
from saetool.exchange import Wanted, formats, importing
from saetool.exchange.sites import claim_of_hook

DATA = Path(__file__).parent / "data"
LENS = DATA / "sae_lens/topk"


@pytest.fixture(autouse=True)
def no_weights_of_timm(monkeypatch):
    """Let the models that files name be out of reach at once: building them first takes seconds."""
    describe = importing._describe

    def at_hand(backbone, layer, tokens):
        if backbone.startswith("timm/"):
            raise WorkError(f"{backbone} is not at hand")
        return describe(backbone, layer, tokens)

    monkeypatch.setattr(importing, "_describe", at_hand)


@pytest.fixture
def copy(tmp_path):
    """Return a copy of a folder of test data that may be broken."""

    def make(source: str, name: str = "source") -> Path:
        shutil.copytree(DATA / source, tmp_path / name)
        return tmp_path / name

    return make


def change(place: Path, name: str = "cfg.json", **values) -> None:
    config = json.loads((place / name).read_text())
    (place / name).write_text(json.dumps({**config, **values}))


def test_the_sealed_autoencoder_computes_what_the_tool_does_and_says_where_it_is_from(tmp_path):
    artifact = saetool.import_autoencoder(LENS, tmp_path / "autoencoder")
    wanted = load_file(LENS / "expected.safetensors")
    torch.testing.assert_close(saetool.load(artifact.path).encode(wanted["x"]), wanted["codes"], rtol=1e-6, atol=1e-6)
    origin = artifact.content["origin"]
    assert (origin["source"], origin["format"]) == ("topk", "sae_lens")
    assert origin["digest"].startswith("xxh3-128:")
    assert origin["converted"]["normalization"] == "none"
    assert origin["claim"]["model"] == "openai/clip-vit-base-patch32"
    assert verify(artifact.path) == []
    assert artifact.notes["source"] == str(LENS)
    assert str(LENS) not in json.dumps(artifact.content)


def test_the_same_source_makes_the_same_artifact_wherever_it_lies(tmp_path, copy):
    first = saetool.import_autoencoder(LENS, tmp_path / "a")
    again = saetool.import_autoencoder(copy("sae_lens/topk", "topk"), tmp_path / "b")
    assert first.id == again.id


def test_load_opens_any_format_without_sealing_it():
    wanted = load_file(LENS / "expected.safetensors")
    model = saetool.load(LENS)
    torch.testing.assert_close(model(wanted["x"]).detach(), wanted["x_hat"], rtol=1e-6, atol=1e-6)
    file = DATA / "overcomplete/topk.pth"
    wanted = load_file(DATA / "overcomplete/topk-expected.safetensors")
    model = saetool.load(file, **{"class": "TopKSAE", "top_k": 4})
    torch.testing.assert_close(model.encode(wanted["x"]), wanted["codes"], rtol=1e-6, atol=1e-6)


def test_load_still_says_what_is_wrong_with_an_artifact(tmp_path):
    with pytest.raises(RequestError, match="no such artifact"):
        saetool.load(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RequestError, match="has no manifest"):
        saetool.load(tmp_path / "empty")


# --- the site --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hook", "layer"),
    [
        ("blocks.8.hook_resid_post", 9),
        ("blocks.8.hook_resid_pre", 8),
        ("blocks.8.hook_mlp_out", "blocks.8.mlp"),
        ("blocks.8.hook_attn_out", "blocks.8.attn"),
        ("layers.5", 6),
        ("vision_model.encoder.layers.5", 6),
        ("h.5.mlp", "h.5.mlp"),
        ("blocks.8.attn.hook_z", None),
        ("blocks.0.hook_resid_pre", None),
        ("somewhere", None),
        (None, None),
    ],
)
def test_hooks_are_layers_from_one_or_module_paths(hook, layer):
    assert claim_of_hook(None, hook).layer == layer


@pytest.fixture
def store(tmp_path):
    """A store whose only site has the width of the test data."""
    rows = torch.randn(4, 3, 6, generator=torch.Generator().manual_seed(0))
    return write_store(tmp_path / "store", {"blocks.1": rows}).artifact


def lens_of(copy, **metadata):
    place = copy("sae_lens/topk")
    change(place, metadata={"sae_lens_version": "6.0.0", **metadata})
    return place


def test_a_store_gives_the_site_and_the_index_then_takes_it(tmp_path, copy, store):
    place = lens_of(copy)
    artifact = saetool.import_autoencoder(place, tmp_path / "autoencoder", Wanted(activations=store.path))
    assert artifact.content["site"]["digest"] == store.content["sites"][0]["digest"]
    features = saetool.index(artifact, store, tmp_path / "features")
    assert features.content["n_latents"] == 16


def test_another_site_is_refused_naming_both_until_it_is_said_to_be_meant(tmp_path, copy, store):
    place = lens_of(copy, model_name="demo/vits14", hook_name="blocks.9.hook_resid_post")
    out = tmp_path / "autoencoder"
    with pytest.raises(RequestError, match=r"layer 10 of demo/vits14, not to .*differ in model, layer.*--another-site"):
        saetool.import_autoencoder(place, out, Wanted(activations=store.path))
    assert not out.exists()
    meant = saetool.import_autoencoder(place, out, Wanted(activations=store.path, another_site=True))
    assert meant.content["site"]["digest"] == store.content["sites"][0]["digest"]


def test_an_artifact_of_our_own_can_be_meant_for_another_store(tmp_path, copy, store):
    one = saetool.import_autoencoder(lens_of(copy), tmp_path / "one", Wanted(activations=store.path))
    rows = torch.randn(4, 3, 6, generator=torch.Generator().manual_seed(1))
    other = write_store(tmp_path / "other", {"blocks.2": rows}).artifact
    with pytest.raises(RequestError, match="--another-site"):
        saetool.index(one, other, tmp_path / "features")
    with pytest.raises(RequestError, match="--another-site"):
        saetool.import_autoencoder(one.path, tmp_path / "two", Wanted(activations=other.path))
    two = saetool.import_autoencoder(one.path, tmp_path / "two", Wanted(activations=other.path, another_site=True))
    assert two.content["origin"]["before"] == one.content["origin"]
    assert saetool.index(two, other, tmp_path / "features").content["n_latents"] == 16


def test_an_open_site_takes_no_store_of_another_layer(tmp_path, copy, store):
    place = lens_of(copy, model_name="nobody/knows-it", hook_name="blocks.9.hook_resid_post")
    artifact = saetool.import_autoencoder(place, tmp_path / "autoencoder")
    assert artifact.content["site"] is None
    with pytest.raises(RequestError, match=r"layer 10 of nobody/knows-it.*--another-site"):
        saetool.index(artifact, store, tmp_path / "features")


def test_another_width_is_refused_naming_both(tmp_path, copy):
    wide = write_store(tmp_path / "wide", torch.randn(4, 3, 8)).artifact
    place = lens_of(copy)
    with pytest.raises(RequestError, match=r"width 6; .* gives 8"):
        saetool.import_autoencoder(place, tmp_path / "out", Wanted(activations=wide.path))
    with pytest.raises(RequestError, match="width 6"):
        saetool.index(
            saetool.import_autoencoder(lens_of_again(tmp_path), tmp_path / "out"), wide, tmp_path / "features"
        )


def lens_of_again(tmp_path):
    return tmp_path / "source"


class Tiny(torch.nn.Module):
    """Two blocks of width 6 over 4 × 4 patches of a picture."""

    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Conv2d(3, 6, 4, 4)
        self.blocks = torch.nn.ModuleList([torch.nn.Linear(6, 6), torch.nn.Linear(6, 6)])

    def forward(self, x):
        x = self.embed(x).flatten(2).mT
        for block in self.blocks:
            x = block(x)
        return x


def test_a_backbone_and_a_layer_say_what_the_file_does_not(tmp_path, copy, monkeypatch):
    def load(settings):
        return saetool.wrap(
            Tiny(), settings.layers, settings.tokens, name=settings.name, image_size=16, blocks="blocks"
        )

    monkeypatch.setattr("saetool.vision.loading.load_backbone", load)
    place = lens_of(copy)
    with pytest.raises(RequestError, match="give --layer too"):
        saetool.import_autoencoder(place, tmp_path / "a", Wanted(backbone="tiny"))
    artifact = saetool.import_autoencoder(place, tmp_path / "a", Wanted(backbone="tiny", layer=2))
    site = artifact.content["site"]
    assert (site["backbone"], site["module"], site["layer"], site["tokens"]) == ("tiny", "blocks.1", 2, "patches")
    change(place, metadata={"sae_lens_version": "6.0.0", "model_name": "demo/vits14", "hook_name": "blocks.0"})
    named = saetool.import_autoencoder(place, tmp_path / "b")  # the file says it all
    assert (named.content["site"]["backbone"], named.content["site"]["layer"]) == ("demo/vits14", 1)
    change(place, metadata={"model_name": "facebook/dinov2-base", "hook_name": "blocks.0"})
    wanted = Wanted(backbone="hf/facebook/dinov2-base")  # the same name with saetool's prefix
    assert saetool.import_autoencoder(place, tmp_path / "c", wanted).content["site"]["layer"] == 1


# --- bad input -------------------------------------------------------------------------------------------------------


class Runs:
    """A pickle of this would run code."""

    def __reduce__(self):
        return (print, ("it ran",))


def a_pickle_that_runs_code(place: Path) -> None:
    with (place / "ae.pt").open("wb") as file:
        pickle.dump({"encoder.weight": Runs()}, file)


def a_torch_file_that_runs_code(place: Path) -> None:
    torch.save({"encoder.weight": Runs()}, place / "ae.pt")


def a_truncated_torch_file(place: Path) -> None:
    data = (place / "ae.pt").read_bytes()
    (place / "ae.pt").write_bytes(data[: len(data) // 2])


def an_unknown_class(place: Path) -> None:
    (place / "config.json").write_text(json.dumps({"trainer": {"dict_class": "CrossCoder"}}))


def a_config_without_a_trainer(place: Path) -> None:
    (place / "config.json").write_text("[1]")


def a_size_that_contradicts(place: Path) -> None:
    config = json.loads((place / "config.json").read_text())
    config["trainer"]["dict_size"] = 99
    (place / "config.json").write_text(json.dumps(config))


def a_weight_that_is_missing(place: Path) -> None:
    state = torch.load(place / "ae.pt", weights_only=True)
    del state["b_dec"]
    torch.save(state, place / "ae.pt")


def a_weight_too_many(place: Path) -> None:
    state = torch.load(place / "ae.pt", weights_only=True)
    torch.save({**state, "W_skip": torch.zeros(3)}, place / "ae.pt")


def numbers_that_are_none(place: Path) -> None:
    state = torch.load(place / "ae.pt", weights_only=True)
    state["b_dec"][2] = float("nan")
    torch.save(state, place / "ae.pt")


BREAKS = {
    a_pickle_that_runs_code: r"its pickle asks for .*print|its pickle is damaged, or asks for more than tensors",
    a_torch_file_that_runs_code: r"asks for .*print, which could run code",
    a_truncated_torch_file: r"truncated",
    an_unknown_class: r"'CrossCoder' is none of",
    a_config_without_a_trainer: r"a list where a JSON object belongs",
    a_size_that_contradicts: r"its config says dict_size 99, its weights have 16",
    a_weight_that_is_missing: r"lacks 'b_dec'",
    a_weight_too_many: r"'W_skip', which this architecture does not have",
    numbers_that_are_none: r"b_dec is not finite",
}


@pytest.mark.parametrize("broken", BREAKS, ids=lambda broken: broken.__name__)
def test_bad_input_ends_in_one_message_and_leaves_nothing(tmp_path, copy, monkeypatch, capsys, broken):
    place = copy("dictionary_learning/AutoEncoderTopK")
    broken(place)
    out = tmp_path / "autoencoder"
    with pytest.raises(RequestError, match=BREAKS[broken]):
        saetool.import_autoencoder(place, out)
    monkeypatch.setattr(sys, "argv", ["saetool", "import", str(place), "--out", str(out)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr()
    assert ended.value.code == 2
    assert said.err.count("\n") == 1
    assert "it ran" not in said.out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_a_truncated_safetensors_file_is_said_to_be(tmp_path, copy):
    place = copy("sae_lens/topk")
    data = (place / "sae_weights.safetensors").read_bytes()
    (place / "sae_weights.safetensors").write_bytes(data[:-20])
    with pytest.raises(RequestError, match="truncated"):
        saetool.import_autoencoder(place, tmp_path / "out")


def test_a_format_recognized_twice_is_to_be_named(tmp_path, copy):
    place = copy("sae_lens/topk")
    shutil.copy(DATA / "sparsify/layers.5/sae.safetensors", place)
    with pytest.raises(RequestError, match=r"could be sae_lens or sparsify: say which with --format"):
        saetool.import_autoencoder(place, tmp_path / "out")
    assert saetool.import_autoencoder(place, tmp_path / "out", format="sae_lens").content["d_in"] == 6


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"architecture": "transcoder"}, "architecture 'transcoder' is none of"),
        ({"normalize_activations": "expected_average_only_in"}, "the factor is not in the file"),
        ({"normalize_activations": "constant_norm_rescale"}, "is not one that can be represented"),
        ({"d_sae": 17}, "its config says d_sae 17, its weights have 16"),
        ({"k": 99}, "k is 99, and there are 16 latents"),
        ({"k": None}, "k is None"),
        ({"k": "many"}, "not sae_lens as it is written"),
        ({"reshape_activations": "hook_z"}, "hook_z"),
        ({"activation_fn_str": "tanh-relu"}, "activation 'tanh-relu'"),
    ],
)
def test_what_cannot_be_represented_is_refused_with_the_reason(copy, changed, message):
    place = copy("sae_lens/topk")
    change(place, **changed)
    with pytest.raises(RequestError, match=message):
        formats.read(place)


@pytest.mark.parametrize("changed", [{"model_name": [1]}, {"hook_name": {"a": 1}}, {"metadata": 3}, {"d_in": "six"}])
def test_a_config_of_other_types_is_refused(tmp_path, copy, changed):
    place = copy("sae_lens/topk")
    change(place, **{"metadata": {}, **changed})
    with pytest.raises(RequestError):
        saetool.import_autoencoder(place, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_config_with_what_no_manifest_holds_is_imported_without_it(tmp_path, copy):
    place = copy("sae_lens/topk")
    text = (place / "cfg.json").read_text()
    (place / "cfg.json").write_text(text[:-1] + ', "lr": NaN, "note": "\\ud800"}')
    facts = saetool.import_autoencoder(place, tmp_path / "out").content["origin"]["facts"]
    assert (facts["lr"], facts["note"]) == (None, "?")


@pytest.mark.parametrize("widths", [[8, 4], [0], ["a"]])
def test_prefixes_that_make_no_sense_are_refused(tmp_path, copy, widths):
    place = copy("sae_lens/matryoshka")
    change(place, matryoshka_widths=widths)
    with pytest.raises(RequestError):
        saetool.import_autoencoder(place, tmp_path / "out")


@pytest.mark.parametrize(("option", "value"), [("--layer", "0"), ("--tokens", "words")])
def test_a_site_that_cannot_be_is_refused_in_one_message(tmp_path, monkeypatch, capsys, option, value):
    arguments = ["import", str(LENS), "--out", str(tmp_path / "out"), "--backbone", "demo/vits14", "--layer", "10"]
    monkeypatch.setattr(sys, "argv", ["saetool", *arguments, option, value])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_transcoder_and_groupmax_of_sparsify_are_refused(copy):
    place = copy("sparsify/layers.5")
    change(place, transcode=True)
    with pytest.raises(RequestError, match="transcoder"):
        formats.read(place)
    change(place, transcode=False, activation="groupmax")
    with pytest.raises(RequestError, match="'groupmax'"):
        formats.read(place)
    change(place, activation="topk", signed=True)
    with pytest.raises(RequestError, match="signed TopK"):
        formats.read(place)


def test_an_encoder_that_is_not_linear_is_refused(tmp_path):
    state = torch.load(DATA / "overcomplete/topk.pth", weights_only=True)
    torch.save({**state, "encoder.final_block.1.weight": torch.ones(16)}, tmp_path / "sae.pth")
    with pytest.raises(RequestError, match="its encoder is not linear"):
        formats.read(tmp_path / "sae.pth", None, {"class": "TopKSAE", "top_k": 4})


def test_a_threshold_that_is_not_positive_is_that_of_a_relu(copy):
    place = copy("sae_lens/jumprelu")
    tensors = load_file(place / "sae_weights.safetensors")
    save_file({**tensors, "threshold": torch.tensor([0.0, -1.0] * 8)}, place / "sae_weights.safetensors")
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(4))
    pre = (x - tensors["b_dec"]) @ tensors["W_enc"] + tensors["b_enc"]
    torch.testing.assert_close(saetool.load(place).encode(x), pre.relu(), rtol=1e-5, atol=1e-5)


def test_float64_that_would_be_rounded_is_refused(copy):
    place = copy("sae_lens/topk")
    tensors = load_file(place / "sae_weights.safetensors")
    save_file({**tensors, "b_dec": tensors["b_dec"].double() / 3}, place / "sae_weights.safetensors")
    with pytest.raises(RequestError, match="b_dec is float64 and would be rounded"):
        formats.read(place)


FILES = [
    "sae_lens/gated/cfg.json",
    "sae_lens/gated/sae_weights.safetensors",
    "dictionary_learning/BatchTopKSAE/config.json",
    "dictionary_learning/BatchTopKSAE/ae.pt",
    "saev/relu.pt",
]


@pytest.mark.parametrize("file", FILES)
def test_whatever_bytes_stand_in_a_file_it_is_read_or_refused(copy, file):
    source = Path(file) if Path(file).parts[0] == "saev" else Path(file).parent
    folder = copy(str(Path(file).parent))
    damaged, whole = folder / Path(file).name, (DATA / file).read_bytes()
    draw = np.random.default_rng(0)
    refused = 0
    for _ in range(60):
        data = bytearray(whole[: int(draw.integers(1, len(whole) + 1))] if draw.random() < 0.3 else whole)
        for place in draw.integers(0, len(data), int(draw.integers(1, 4))):
            data[place] = int(draw.integers(0, 256))
        damaged.write_bytes(data)
        try:
            formats.read(damaged if source.suffix else folder, Path(file).parts[0])
        except RequestError:
            refused += 1
    assert refused > 5


def test_what_is_no_autoencoder_names_the_formats(tmp_path):
    (tmp_path / "notes.json").write_text("{}")
    with pytest.raises(RequestError, match="in none of the formats sae_lens, sparsify"):
        saetool.import_autoencoder(tmp_path / "notes.json", tmp_path / "out")
    with pytest.raises(RequestError, match="no such file"):
        saetool.import_autoencoder(tmp_path / "nothing", tmp_path / "out")
    with pytest.raises(RequestError, match="--format csv: none of"):
        saetool.import_autoencoder(LENS, tmp_path / "out", format="csv")


def test_a_sealed_autoencoder_is_told_nothing(tmp_path):
    artifact = saetool.import_autoencoder(LENS, tmp_path / "one")
    with pytest.raises(RequestError, match="top_k=: not asked of a sealed autoencoder"):
        saetool.import_autoencoder(artifact.path, tmp_path / "two", given={"top_k": 3})


def test_an_imported_autoencoder_is_an_artifact_like_any_other(tmp_path):
    artifact = saetool.import_autoencoder(LENS, tmp_path / "autoencoder")
    assert Artifact.open(artifact.path, kind="autoencoder").id == artifact.id
    assert saetool.import_autoencoder(LENS, tmp_path / "autoencoder").id == artifact.id  # done already
    with pytest.raises(RequestError, match="already holds something else"):
        saetool.import_autoencoder(DATA / "sae_lens/gated", tmp_path / "autoencoder")


def test_a_topk_of_sae_lens_5_is_one_under_either_name(copy):
    named, standard = copy("sae_lens_5/standard_topk"), formats.read(DATA / "sae_lens_5/standard_topk").plain
    change(named, architecture="topk")
    found = formats.read(named).plain
    assert (found.activation, found.k) == (standard.activation, standard.k)
    assert torch.equal(found.W_enc, standard.W_enc)


@pytest.mark.parametrize("name", ["gated", "jumprelu_layer_norm"])
def test_a_top_k_in_the_place_of_another_encoders_relu_is_refused(copy, name):
    place = copy(f"sae_lens_5/{name}")
    change(place, activation_fn_str="topk", activation_fn_kwargs={"k": 4})
    with pytest.raises(RequestError, match=r"with a top-k for its ReLU is none of the sparse family's"):
        formats.read(place)


def test_numbers_and_metadata_in_other_words_are_read(copy):
    place = copy("sae_lens/topk")
    change(place, d_in="6", k="4", metadata=None)
    assert formats.read(place).plain.k == 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_dictionary_in_half_is_widened_before_it_is_normalized(tmp_path, dtype):
    state = torch.load(DATA / "overcomplete/topk.pth", weights_only=True)
    halved = {key: value.to(dtype) for key, value in state.items()}
    torch.save(halved, tmp_path / "half.pth")
    plain = formats.read(tmp_path / "half.pth", None, {"class": "TopKSAE", "top_k": 4}).plain
    weights = halved["dictionary._weights"].double()
    wanted = weights / (weights.norm(dim=1, keepdim=True) + 1e-8)
    torch.testing.assert_close(plain.W_dec.double(), wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.int8, torch.complex64])
def test_weights_that_are_no_floating_point_numbers_are_refused(copy, dtype):
    place = copy("sae_lens/topk")
    state = load_file(place / "sae_weights.safetensors")
    save_file(state | {"W_dec": state["W_dec"].to(dtype)}, place / "sae_weights.safetensors")
    with pytest.raises(RequestError, match=f"W_dec is {dtype}: weights are floating-point numbers"):
        formats.read(place)


def test_files_that_no_reader_can_open_end_in_a_sentence(tmp_path):
    header = json.dumps({"W": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}).encode()
    (tmp_path / "four.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0")
    (tmp_path / "config.json").write_text("{}")
    torch.save({"state_dict": torch.zeros(3)}, tmp_path / "odd.pt")
    for name in ("four.safetensors", "odd.pt"):
        with pytest.raises(RequestError, match=rf"{name}: in none of the formats|does not have here"):
            saetool.load(tmp_path / name)
    a_torch_file_that_runs_code(tmp_path)
    with pytest.raises(RequestError, match="print, which could run code"):
        saetool.load(tmp_path / "ae.pt")


def test_a_config_beside_the_file_of_weights_is_part_of_the_source(tmp_path):
    shape = {"W_enc": (6, 16), "b_enc": (16,), "W_dec": (16, 6), "b_dec": (6,)}
    torch.save({key: torch.randn(size) for key, size in shape.items()}, tmp_path / "weights.pt")
    config = {"hook_point_layer": 2, "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 8}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    first = saetool.import_autoencoder(tmp_path / "weights.pt", tmp_path / "a")
    change(tmp_path, "config.json", activation_fn_kwargs={"k": 4})
    with pytest.raises(RequestError, match="already holds something else"):
        saetool.import_autoencoder(tmp_path / "weights.pt", tmp_path / "a")
    assert first.content["settings"]["activation"]["k"] == 8
