"""A config says what is wrong with it, and what would be right."""

import itertools
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from saetool.config import build_config, load_config, packaged_configs, sweep_members
from saetool.errors import RequestError
from saetool.other_names import OTHER_NAMES

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "configs").glob("*.yaml")))
def test_every_packaged_config_is_valid_found_by_name_and_one_screen_long(name):
    config = load_config(name)
    assert config == load_config(str(ROOT / "configs" / f"{name}.yaml"))
    assert len(packaged_configs()[name].read_text().splitlines()) <= 40


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainig.lr=1", "trainig: unknown key. Did you mean training?"),
        ("training.lrr=1", "Did you mean training.lr?"),
        ("training.lr=fast", "training.lr: Input should be a valid number"),
        ("autoencoder.kind=spars", "autoencoder.kind"),
        ("autoencoder.activation.kind=topk", "autoencoder.activation.k: missing"),
        ("autoencoder.penalty.target=3", "Did you mean autoencoder.penalty.target_l0?"),
        ("autoencoder.penalty={kind: kl, rho: 0.05}", "the KL penalty reads a latent's mean as a probability"),
        ("backbone.layers=[0]", "layers count from 1"),
        ("training.layer=3", "training.layer is 3, but backbone.layers caches [10]"),
        ("training.lr", "is not an override"),
        ("training.lr=[1", "not valid YAML"),
    ],
)
def test_a_wrong_key_or_value_is_named_with_the_way_out(override, message):
    with pytest.raises(RequestError) as caught:
        load_config("demo", [override])
    assert message in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("override", "write"),
    [
        ("training.epochs=3", "training.tokens=1_300_000"),
        ("training.l1_coefficient=3", "autoencoder.penalty={kind: l1, target_l0: 45}"),
        ("autoencoder.k=32", "autoencoder.activation={kind: topk, k: 32}"),
        ("autoencoder.expansion_factor=8", "autoencoder.expansion=32"),
        ("autoencoder.d_sae=8", "autoencoder.n_latents=12288"),
        ("batch_size=8", "training.batch_size=2048"),
        ("lr=8", "training.lr=1e-3"),
        ("device=cuda", "CUDA_VISIBLE_DEVICES"),
        ("cache.Learning-Rate=1", "training.lr=1e-3"),
        ("training.expansion=3", "Did you mean autoencoder.expansion?"),
    ],
)
def test_a_word_of_another_tool_ends_in_the_name_of_our_setting(override, write):
    with pytest.raises(RequestError) as caught:
        load_config("demo", [override])
    key = override.partition("=")[0]
    assert f"{key}: unknown key." in str(caught.value)
    assert write in str(caught.value)


@pytest.mark.parametrize("entry", sorted({entry for entry in OTHER_NAMES.values() if entry.key}))
def test_what_is_to_be_written_for_another_tools_word_is_a_key_with_a_value_that_it_takes(entry):
    complaint = ""
    try:
        load_config("demo", [f"{entry.key}={entry.example}"])
    except RequestError as error:  # two settings may not go together, but this one is understood
        complaint = str(error)
    assert not any(words in complaint for words in ("unknown", "Input should", "missing")), complaint


@pytest.mark.parametrize(
    ("override", "read", "wanted"),
    [
        ("backbone.layers=10", lambda c: c.backbone.layers, [10]),
        ("backbone.layers=blocks.9.mlp", lambda c: c.backbone.layers, ["blocks.9.mlp"]),
        ("images.label_columns=defect", lambda c: c.images.label_columns, ["defect"]),
        ("report.latents=7", lambda c: c.report.latents, [7]),
        ("evaluation.stability=runs/b/autoencoder", lambda c: c.evaluation.stability, ("runs/b/autoencoder",)),
        ("autoencoder.matryoshka=768", lambda c: c.autoencoder.matryoshka, (768,)),
        ("sweep={training.lr: 1e-3}", lambda c: c.sweep, {"training.lr": [1e-3]}),
    ],
)
def test_one_value_is_a_list_of_one_where_only_a_list_will_do(override, read, wanted):
    assert read(load_config("demo", [override])) == wanted


@pytest.mark.parametrize("override", ["backbone.layers=10,11", "backbone.layers=true"])
def test_a_list_without_its_brackets_is_refused_and_shown_how(override):
    with pytest.raises(RequestError, match=r"backbone\.layers: Input should be a valid list, as in \[1, 2\]"):
        load_config("demo", [override])


def test_an_activation_may_stand_as_the_kind_of_autoencoder_and_its_k_beside_it():
    short = {"kind": "topk", "k": 32, "expansion": 4}
    long = {"kind": "sparse", "activation": {"kind": "topk", "k": 32}, "expansion": 4}
    rest = {"run": "runs/x", "images": {}, "backbone": {}, "training": {"tokens": 100}}
    assert build_config({**rest, "autoencoder": short}, "a") == build_config({**rest, "autoencoder": long}, "b")
    with pytest.raises(RequestError, match="topk fixes the number of active latents by k"):
        load_config("demo", ["autoencoder={kind: topk, k: 8, expansion: 4, penalty: {kind: l1, weight: 1}}"])


def test_overrides_reach_their_key_and_nothing_else():
    config = load_config("demo", ["training.lr=1e-2", "run=elsewhere", "images.limit=24"])
    assert config.training.lr == 0.01
    assert config.run == "elsewhere"
    assert config.images.limit == 24
    plain = load_config("demo")
    assert config.autoencoder == plain.autoencoder
    assert config.training.tokens == plain.training.tokens


def test_numbers_and_words_are_those_of_yaml_1_2(tmp_path):
    text = (ROOT / "configs" / "demo.yaml").read_text().replace("run: runs/demo", "run: no")
    path = tmp_path / "a.yaml"
    path.write_text(text.replace("lr: 4e-3", "lr: 5e-4"))
    config = load_config(str(path))
    assert config.run == "no"
    assert config.training.lr == 5e-4
    assert config.training.tokens == 1_300_000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("run: a\nrun: b\n", "'run' stands twice"),
        ("- a\n- b\n", "a config is a mapping"),
        ("run: !!python/object/apply:os.system [echo]\n", "not valid YAML"),
        ("", "a config is a mapping"),
    ],
)
def test_a_file_that_is_no_config_is_refused(tmp_path, text, message):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(RequestError, match=message):
        load_config(str(path))


def test_a_missing_config_is_named_with_the_closest_packaged_one():
    with pytest.raises(RequestError, match="Did you mean 'demo'"):
        load_config("dmo")
    with pytest.raises(RequestError, match="no such config file"):
        load_config("nowhere/demo.yaml")


def sweep(value) -> list:
    values = {
        "run": "runs/x",
        "images": {"source": "elpv"},
        "backbone": {"name": "demo/vits14", "layers": [10]},
        "autoencoder": {"kind": "sparse", "expansion": 4, "penalty": {"kind": "l1", "weight": 0.1}},
        "training": {"tokens": 1000, "batch_size": 10},
        "sweep": value,
    }
    return sweep_members(build_config(values, "test"))


def test_a_mapping_sweeps_over_the_product_and_a_list_over_its_entries():
    members = sweep({"autoencoder.penalty.weight": [0.1, 0.2], "training.seed": [0, 1]})
    assert [name for name, _ in members][:2] == [
        "penalty.weight=0.1,training.seed=0",
        "penalty.weight=0.1,training.seed=1",
    ]
    assert [(m.autoencoder.penalty.weight, m.training.seed) for _, m in members] == [
        (0.1, 0),
        (0.1, 1),
        (0.2, 0),
        (0.2, 1),
    ]
    topk = {
        "autoencoder.activation": {"kind": "topk", "k": 8},
        "autoencoder.penalty": {"kind": "none"},
        "name": "topk-8",
    }
    members = sweep([{"autoencoder.penalty.weight": 0.3}, topk])
    assert [name for name, _ in members] == ["penalty.weight=0.3", "topk-8"]
    assert members[1][1].autoencoder.activation.k == 8


def test_a_sweep_varies_the_model_only():
    with pytest.raises(RequestError, match="share images and activations"):
        sweep({"backbone.layers": [[1], [2]]})


@pytest.mark.slow
def test_the_wheel_carries_the_configs(tmp_path):
    copy = tmp_path / "source"
    ignore = shutil.ignore_patterns(".git", ".venv", "runs", "__pycache__")
    shutil.copytree(ROOT, copy, ignore=ignore)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(tmp_path), str(copy)]
    subprocess.run(command, check=True)
    names = zipfile.ZipFile(next(tmp_path.glob("saetool-*.whl"))).namelist()
    assert {f"saetool/configs/{path.name}" for path in (ROOT / "configs").glob("*.yaml")} <= set(names)
    assert any(name.startswith("saetool/report/") and name.endswith(".js") for name in names)


@pytest.mark.parametrize(
    ("key", "text"),
    [("run", '"a\\0b"'), ("images.source", '"a\\ud800"'), ("report.title", '"\\udcff"'), ("index.embeddings", '"\\0"')],
)
def test_a_text_that_cannot_be_written_is_refused_by_its_key(key, text):
    with pytest.raises(RequestError, match=f"{key}: .*(cannot be written|no folder can have this name)"):
        load_config("demo", [f"{key}={text}"])


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("backbone.image_size=abc", "backbone.image_size: should be a valid integer, .* or a valid tuple"),
        ("training.layer=[1]", "training.layer: should be a valid integer or a valid string"),
        ("sweep=3", "sweep: should be a valid dictionary or a valid list"),
        ("backbone.layers=[1, [2]]", r"backbone.layers\.1: should be"),
    ],
)
def test_a_value_of_several_possible_types_gets_one_line(override, line):
    with pytest.raises(RequestError, match=line) as caught:
        load_config("demo", [override])
    assert "\n" not in str(caught.value)


def test_what_other_programs_call_it_is_understood():
    with pytest.raises(RequestError, match=r"training\.epochs: unknown key. Did you mean training\.tokens\?"):
        load_config("demo", ["training.epochs=3"])


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join(['*' + old] * 10)}]\n" for old, new in itertools.pairwise("abcdefghij")
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (BOMB, "holds more than 100,000 values"),
        ("a: &a [1, *a]", "holds more than 100,000 values"),
        ("a: " + "[" * 20_000 + "]" * 20_000, "nested too deep"),
        ("run: " + "9" * 5000, "not valid YAML"),
        ("? [a, b]\n: 1", "cannot be a key"),
        ("at: 2026-99-99", "not valid YAML"),
        ("1: x", "a.yaml"),
        ("run: !!python/object/apply:os.system [ls]", "not valid YAML"),
    ],
)
def test_yaml_that_would_fill_the_memory_ends_in_a_message(text, reason, tmp_path):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(RequestError, match=reason):
        load_config(str(tmp_path / "a.yaml"))


def test_anchors_may_be_used(tmp_path):
    (tmp_path / "a.yaml").write_text(
        "run: &here runs/x\nactivations: *here\nimages: {source: digits}\nbackbone: {name: pixels, image_size: 8}\n"
        "autoencoder: {kind: sparse, n_latents: 8, activation: {kind: topk, k: 2}}\ntraining: {tokens: 10}\n"
    )
    assert load_config(str(tmp_path / "a.yaml")).activations == "runs/x"


@pytest.mark.parametrize("key", ["run", "activations"])
@pytest.mark.parametrize("name", ["a\\0b", "x" * 241])
def test_names_that_no_folder_can_have_are_refused(key, name):
    with pytest.raises(RequestError, match=f"{key}: no folder can have this name"):
        load_config("demo", [f'{key}="{name}"'])


def test_an_autoencoder_may_be_the_path_of_a_trained_one():
    config = load_config("demo", ["autoencoder=runs/theirs/autoencoder"])
    assert (config.autoencoder.kind, config.autoencoder.path) == ("trained", "runs/theirs/autoencoder")
    with pytest.raises(RequestError, match="autoencoder"):
        load_config("demo", ["autoencoder=''"])


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["autoencoder={kind: topk, k: 64, n_latents: 32}"], "k 64 exceeds the 32 latents"),
        (
            ["autoencoder.dead={kind: resample, after_tokens: 9_000_000}"],
            r"autoencoder\.dead\.after_tokens 9,000,000 is",
        ),
        (["autoencoder.dead={kind: resample}", "training.tokens=2048"], r"autoencoder\.dead\.every_steps 1 is never"),
    ],
)
def test_what_the_config_alone_shows_to_be_impossible_is_refused_before_any_work(overrides, said):
    with pytest.raises(RequestError, match=said):
        load_config("demo", overrides)
