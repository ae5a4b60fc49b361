"""A run asked for again: what says the same is the same, what costs much is never thrown away for what costs little."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import yaml
from PIL import Image

import saetool
from saetool.artifacts import Artifact, run_stage
from saetool.config import build_config, keep_config, load_config, packaged_configs, set_key
from saetool.errors import RequestError
from saetool.evaluation.stage import Journal
from saetool.pipeline import Member, Run

CONFIG = """
run: {run}
images: {{source: {images}}}
backbone: {{name: timm/test_vit, layers: [2, 3], pretrained: false, image_size: 32, precision: fp32}}
autoencoder: {{kind: sparse, n_latents: 32, activation: {{kind: topk, k: 4}}}}
training: {{tokens: 2000, batch_size: 64, held_out: 0.3, layer: 2}}
evaluation: {{bootstrap: 10, clusters: 4, effect_images: 8, probe_images: 20, effect_latents: 1}}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("pipeline")
    draw = np.random.default_rng(0)
    for kind in ("bright", "dark"):
        (root / "images" / kind).mkdir(parents=True)
        for i in range(20):
            pixels = draw.integers(0, 128, (32, 32, 3), dtype=np.uint8) + (127 if kind == "bright" else 0)
            Image.fromarray(pixels.astype(np.uint8)).save(root / "images" / kind / f"{i}.bmp")
    (root / "a.yaml").write_text(CONFIG.format(run=root / "run", images=root / "images"))
    Run.load(str(root / "a.yaml")).make_all()
    return root


def ids(place):
    return {path.parent.name: Artifact.open(path.parent).id for path in (place / "run").glob("*/manifest.json")}


@pytest.fixture
def copy(place, tmp_path):
    shutil.copytree(place / "run", tmp_path / "run")
    shutil.copy(place / "a.yaml", tmp_path / "a.yaml")
    return tmp_path


def run(place, *overrides, config="a.yaml"):
    return Run.load(str(place / config), [f"run={place / 'run'}", *overrides])


def done(capsys):
    return capsys.readouterr().err.count("done already")


@pytest.mark.parametrize(
    "override",
    ["training.lr=1e-3", "training.checkpoint_minutes=0.5", "evaluation.effect_images=48", "images.max_pixels=9999"],
)
def test_overrides_that_change_nothing_find_everything_done(override, copy, capsys):
    before = ids(copy)
    run(copy, override).make_all()
    assert done(capsys) == 5
    assert ids(copy) == before


def test_a_renamed_config_and_moved_images_find_everything_done(place, copy, capsys):
    (copy / "a.yaml").rename(copy / "b.yaml")
    shutil.copytree(place / "images", copy / "images", copy_function=shutil.copy)
    run(copy, f"images.source={copy / 'images'}", config="b.yaml").make_all()
    assert done(capsys) == 5


def test_the_command_changes_no_id(place, copy):
    shutil.rmtree(copy / "run" / "report")
    (copy / "a.yaml").rename(copy / "b.yaml")
    run(copy, "training.checkpoint_minutes=3", config="b.yaml").make_all()
    assert ids(copy) == ids(place)
    there, here = ((root / "run" / "report" / "data" / "command.js").read_text() for root in (place, copy))
    assert "a.yaml" in there
    assert "b.yaml training.checkpoint_minutes=3" in here


def test_a_full_evaluation_takes_other_settings_than_the_cheap_one_had_and_is_kept(copy, capsys):
    member = run(copy, "evaluation.effect_images=6").members[0]
    whole = member.evaluate()
    found = json.loads(whole.file("evaluation.json").read_text())
    assert found["effect"]["images"] == 6
    capsys.readouterr()
    assert run(copy).members[0].evaluate(full=False).id == whole.id
    assert done(capsys) == 1
    # The model is trained anew, with another rate: what was full stays full.
    run(copy, "training.lr=2e-3", "evaluation.effect_images=6").make_all(force="different")
    again = Artifact.open(copy / "run" / "evaluation")
    assert again.id != whole.id
    assert {"effect", "probing"} <= set(again.content["sections"])


def test_a_page_that_is_older_than_an_evaluation_is_named(copy, capsys):
    run(copy).make("evaluation")
    said = capsys.readouterr().err
    assert f"{copy / 'run' / 'report'}: does not show it yet; `saetool report` writes the page again." in said
    run(copy).make("report")
    capsys.readouterr()
    run(copy).make("evaluation")
    assert "does not show it yet" not in capsys.readouterr().err


def test_a_full_evaluation_that_was_damaged_is_made_again_in_full(copy):
    whole = run(copy).members[0].evaluate()
    (whole.path / "evaluation.md").write_text("damaged")
    again = run(copy).members[0].evaluate("different", full=False)
    assert (again.id, Artifact.open(again.path).read_bytes("evaluation.md")[:2]) == (whole.id, b"# ")


def test_a_replaced_picture_is_named_by_the_run(place, copy):
    shutil.copytree(place / "images", copy / "images")
    Image.new("RGB", (32, 32), (1, 2, 3)).save(copy / "images" / "dark" / "7.bmp")
    with pytest.raises(RequestError, match=r"the image 'dark/7\.bmp' is not the one that was cached"):
        run(copy, f"images.source={copy / 'images'}").make_all()


def test_work_of_an_earlier_stage_that_is_not_finished_is_finished_by_its_own_command(copy):
    (copy / "run" / "autoencoder").rename(copy / "run" / "autoencoder.partial")
    with pytest.raises(RequestError, match=r"begun and not finished\. `saetool train CONFIG` finishes it"):
        run(copy).members[0].index()


def test_a_run_keeps_its_config_and_its_stages_need_no_other_argument(place, copy, capsys):
    kept = load_config(str(place / "run"))
    assert kept == load_config(str(place / "a.yaml"))
    assert yaml.safe_load((place / "run" / "config.yaml").read_text())["training"]["lr"] == 1e-3, "defaults are there"
    # Moved, from another folder: every stage finds what stands there.
    before = ids(copy)
    for stage in ("activations", "autoencoder", "features", "report"):
        Run.load(str(copy / "run")).make(stage)
    Run.load(str(copy / "run")).make_all()
    assert done(capsys) == 9
    assert ids(copy) == before
    assert load_config(str(copy / "run")).run == str(copy / "run")


def test_an_override_is_kept_by_the_stage_that_it_belongs_to(copy):
    run(copy, "index.top=3", "images.limit=7", config="a.yaml").make("features", force=True)
    kept = load_config(str(copy / "run"))
    assert kept.index.top == 3
    assert kept.images.limit is None, "the store that stands there has all images"
    assert Run.load(str(copy / "run")).make("features")[0].config["top"] == 3
    run(copy, "images.group={block: 4}", "images.limit=7", config="a.yaml").make("autoencoder", force=True)
    kept = load_config(str(copy / "run"))
    assert kept.images.group.block == 4, "it decides which images are held out of training"
    assert (kept.images.limit, kept.index.top) == (None, 3)


def test_a_killed_first_stage_has_its_config_already(place, copy, monkeypatch):
    monkeypatch.setattr("saetool.activations.caching.CachingJob._fill", lambda *_: (_ for _ in ()).throw(OSError("x")))
    with pytest.raises(OSError, match="x"):
        run(copy, f"run={copy / 'new'}", "images.limit=7").make("activations")
    monkeypatch.undo()
    assert Run.load(str(copy / "new")).make("activations")[0].content["images"] == 7


def test_a_refused_request_leaves_the_kept_config_as_it_is(copy):
    before = (copy / "run" / "config.yaml").read_bytes()
    with pytest.raises(RequestError, match=r"training\.lr"):
        run(copy, "training.lr=0.5").make("autoencoder")
    assert (copy / "run" / "config.yaml").read_bytes() == before
    with pytest.raises(RequestError, match=r"training\.lr"):  # the store stands and is not asked again
        run(copy, "training.lr=0.5", "images.on_error=skip").make_all()
    assert (copy / "run" / "config.yaml").read_bytes() == before
    with pytest.raises(RequestError, match="no run that was begun"):
        Run.load(str(copy))


def test_a_site_to_train_on_is_asked_for_before_anything_is_cached(copy):
    for layers in ("[2, 3]", "['blocks.*']"):
        with pytest.raises(RequestError, match=r"training\.layer: missing; backbone\.layers are"):
            run(copy, f"run={copy / 'new'}", f"backbone.layers={layers}", "training.layer=null").make_all()
    assert not (copy / "new" / "activations").exists()


def test_a_finished_page_needs_no_images(place, copy, capsys):
    (place / "images").rename(place / "elsewhere")
    try:
        assert run(copy).make("report")[0].id == ids(copy)["report"]
        assert "done already; the images themselves are not at hand" in capsys.readouterr().err
        with pytest.raises(RequestError, match=r"images\.source"):
            run(copy, "report.title=Other").make("report", force=True)
    finally:
        (place / "elsewhere").rename(place / "images")


def test_numbers_of_training_rows_are_called_so(copy):
    made = run(copy, f"run={copy / 'all'}", f"activations={copy / 'run/activations'}", "training.held_out=0").make_all()
    assert "; on the training rows:\n  FVU" in made[0].result()
    assert "training rows: FVU" in repr(Artifact.open(copy / "all/autoencoder"))
    page = json.loads((copy / "all/report/manifest.json").read_text())
    assert page["kind"] == "report"
    assert "on the training rows" in (copy / "all/report/index.html").read_text()


def test_what_an_evaluation_gives_to_think_of_stands_below_the_result(copy):
    member = run(copy).members[0]
    found = json.loads((copy / "run/evaluation/evaluation.json").read_text())["concerns"]
    assert found
    assert all(line in member.result() for line in found)


@pytest.mark.parametrize("name", sorted(packaged_configs()))
def test_a_kept_config_is_read_back_as_it_was(name, tmp_path):
    odd = {"run": str(tmp_path), "report.title": "1e-3", "images.label_columns": ["no", "1", "a: b", "ä\u2028"]}
    values = load_config(name).model_dump(exclude_unset=True)
    for key, value in odd.items():
        set_key(values, key, value)
    config = build_config(values, "odd")
    keep_config(config, tmp_path)
    assert load_config(tmp_path) == config


def test_a_kept_config_leaves_to_the_rows_what_was_left_to_them(tmp_path):
    config = load_config("demo", [f"run={tmp_path}", "autoencoder=auto", "training={minutes: 3}"])
    keep_config(config, tmp_path)
    assert load_config(tmp_path) == config


def test_a_full_evaluation_that_was_begun_goes_on_and_is_not_thrown_away_for_a_cheap_one(copy, capsys):
    member = run(copy).members[0]
    shutil.rmtree(copy / "run" / "evaluation")
    whole = member._evaluation(full=True)

    def killed(partial):
        Journal(partial)("held_out", lambda: {"marked": True})
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_stage(dataclasses.replace(whole, build=killed), copy / "run" / "evaluation")
    seen = []
    begun = dataclasses.replace(whole, build=lambda partial: seen.append(partial.record_of("section/held_out")) or {})
    member = run(copy).members[0]
    object.__setattr__(member, "_evaluation", lambda full: begun if full else Member._evaluation(member, full))
    member.evaluate("different", full=False)
    assert seen == [{"found": {"marked": True}}]
    assert "a full evaluation was begun here; it goes on" in capsys.readouterr().err


def test_python_asks_for_the_stage_that_is_missing_by_its_name_too(copy):
    (copy / "run" / "autoencoder").rename(copy / "run" / "autoencoder.partial")
    with pytest.raises(RequestError, match=r"begun and not finished; .*autoencoder\.partial: `saetool train` finishes"):
        saetool.index(copy / "run" / "autoencoder", copy / "run" / "activations", copy / "other")
    with pytest.raises(RequestError, match=r"no such artifact\. `saetool cache` makes it"):
        saetool.train(copy / "nowhere", kind="topk", k=2, n_latents=8, tokens=64, out=copy / "other")
    with pytest.raises(RequestError, match=r"a folder of artifacts\. Name the one: .*run/features"):
        saetool.Features(copy / "run")


def test_a_run_from_a_dictionary_is_the_run_of_the_file(place, copy, capsys):
    values = yaml.safe_load((copy / "a.yaml").read_text())
    made = saetool.run(values, {"run": str(copy / "run"), "training.checkpoint_minutes": 7})
    assert done(capsys) == 5
    assert values == yaml.safe_load((copy / "a.yaml").read_text()), "what was given is left as it was"
    assert made["features"].id == ids(copy)["features"]
    assert saetool.run(copy / "run", ["training.checkpoint_minutes=9"])["autoencoder"].id == made["autoencoder"].id
    assert "FVU" in repr(made)
    with pytest.raises(RequestError, match="has no 'featurs'"):
        made["featurs"]
    with pytest.raises(RequestError, match=r"run: training\.lrr: unknown key\. Did you mean training\.lr\?"):
        saetool.run(values, {"training.lrr": 1})


def test_a_tilde_is_the_home_folder(place, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(place / "run", tmp_path / "run")
    loaded = Run.load(
        str(place / "a.yaml"),
        ["run='~/other'", "activations='~/run/activations'", "evaluation.stability=['~/run/autoencoder']"],
    )
    member = loaded.members[0]
    assert loaded.store.path == tmp_path / "run" / "activations"
    loaded.train()
    member.evaluate(full=False)
    assert (tmp_path / "other" / "evaluation" / "manifest.json").is_file()
    assert not (tmp_path / "~").exists()


def test_a_sweep_over_layers_is_on_a_plane_a_layer(copy):
    from saetool.report import write_overview

    run(
        copy, f"run={copy / 'sweep'}", f"activations={copy / 'run' / 'activations'}", "sweep={training.layer: [2, 3]}"
    ).make_all()
    points = json.loads((copy / "sweep" / "sweep" / "sweep.json").read_text())["points"]
    sites = {point["name"]: point["site"] for point in points if point["kind"] == "autoencoder"}
    assert len(set(sites.values())) == 2
    for site in sites.values():
        assert any(point["frontier"] for point in points if point["site"] == site)
    assert (copy / "sweep" / "sweep" / "sweep.md").read_text().count("## ") == 2
    page = (write_overview(copy / "sweep")).parent
    assert "layer 3 (blocks.2)" in "".join(path.read_text() for path in page.rglob("*.js"))
