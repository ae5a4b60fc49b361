"""The whole evaluation of small trained autoencoders on stores, with planted labels; bad input is explained."""

import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pyarrow
import pytest
import torch
from pydantic import TypeAdapter

from saetool.activations import write_store
from saetool.artifacts import Artifact, Partial, Stage, run_stage
from saetool.autoencoders.families import AutoencoderSettings, load
from saetool.errors import RequestError
from saetool.evaluation import (
    EvaluationSettings,
    evaluation_stage,
    sections,
    sweep_markdown,
    sweep_stage,
    sweep_summary,
)
from saetool.evaluation.pareto import mark_frontier, seed_pairs
from saetool.evaluation.reconstruction import held_out_sums, numbers
from saetool.evaluation.stage import Journal
from saetool.evaluation.tables import all_tables
from saetool.features import index
from saetool.features.monosemanticity import Chance
from saetool.statistics import unit_rows
from saetool.training import TrainingSettings, train

D, TOKENS, ATOMS = 16, 4, 24


def planted_store(folder, seed=0, images=240, folder_name="rows", labels=True, d=D):
    """Tokens are sparse sums of atoms; one atom appears only in images of class 'crack'."""
    rng = np.random.default_rng(seed)
    atoms = np.random.default_rng(99).normal(size=(ATOMS, d))
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    z = rng.uniform(0.5, 1.5, (images, TOKENS, ATOMS)) * (rng.random((images, TOKENS, ATOMS)) < 0.08)
    crack = rng.random(images) < 0.4
    z[:, :, 0] = 0
    z[crack, 0, 0] = rng.uniform(1, 2, crack.sum())
    tokens = torch.from_numpy(z @ atoms).float()
    names = [{"state": "crack" if c else "sound"} for c in crack]
    columns = [{"name": "state", "kind": "category", "classes": ["crack", "sound"]}]
    return write_store(
        folder,
        {folder_name: tokens},
        images=names if labels else None,
        labels=columns if labels else (),
        grid=(2, 2),
    ).artifact


def trained(store, out, tokens=30_000, lr=1e-2, **more):
    penalty = {"kind": "l1", "weight": 0.3, "warmup_steps": min(10, tokens // 512)}
    settings = TypeAdapter(AutoencoderSettings).validate_python(
        {"kind": "sparse", "n_latents": 48, "initial_l0": 3, "penalty": penalty}
    )
    return train(store, settings, TrainingSettings(tokens=tokens, lr=lr, batch_size=256, held_out=0.25, **more), out)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("evaluation")


@pytest.fixture(scope="module")
def store(place):
    return planted_store(place / "store")


@pytest.fixture(scope="module")
def autoencoder(place, store):
    return trained(store, place / "autoencoder")


@pytest.fixture(scope="module")
def evaluation(place, store, autoencoder):
    settings = EvaluationSettings(probing=True, refit=True, bootstrap=200, clusters=16)
    return run_stage(evaluation_stage(autoencoder, store, settings, seed=0), place / "evaluation")


@pytest.fixture(scope="module")
def found(evaluation):
    return json.loads(evaluation.file("evaluation.json").read_text())


def test_numbers_are_those_of_the_held_out_images(found, store, autoencoder):
    from saetool.activations import ActivationStore, held_out_mask

    opened = ActivationStore(store)
    mask = held_out_mask(opened.digests, 0, 0.25)
    x = opened.site().rows(0, 240)[torch.from_numpy(mask)]
    slow = numbers(held_out_sums(load(autoencoder.path), [x], x.double().mean((0, 1))), seed=0)
    assert found["held_out"]["images"] == int(mask.sum())
    assert 0.15 < mask.mean() < 0.35
    for name in ("fvu", "l0", "cosine"):
        assert found["held_out"][name]["value"] == pytest.approx(slow[name]["value"], rel=1e-5)
    final = autoencoder.content["final"]
    assert found["held_out"]["fvu"]["value"] == pytest.approx(final["fvu"], rel=1e-4)
    assert found["held_out"]["dead"] == final["dead"]


def test_numbers_on_training_images_stand_beside(found, store, autoencoder):
    from saetool.activations import ActivationStore, held_out_mask

    opened = ActivationStore(store)
    split = autoencoder.content["held_out"]
    mask = held_out_mask(opened.digests, split["seed"], split["share"])
    seen = np.flatnonzero(~mask)
    chosen = seen[(np.arange(mask.sum()) * len(seen)) // mask.sum()]
    x = opened.site().rows(0, 240)[torch.from_numpy(chosen)]
    slow = numbers(held_out_sums(load(autoencoder.path), [x], x.double().mean((0, 1))), seed=0)
    assert found["training"]["images"] == len(chosen)
    assert found["training"]["fvu"]["value"] == pytest.approx(slow["fvu"]["value"], rel=1e-5)


def test_the_trained_dictionary_beats_the_random_one(found):
    fvu = {row["name"]: row["numbers"]["fvu"]["value"] for row in found["baselines"]}
    assert set(fvu) == {"PCA", "PCA, fixed", "k-means", "random dictionary", "raw neurons"}
    assert found["refitted"]["numbers"]["fvu"]["value"] < found["held_out"]["fvu"]["value"]
    assert found["held_out"]["fvu"]["value"] < 0.5 * fvu["random dictionary"]
    columns = {key for row in found["baselines"] for key in row["numbers"]}
    assert columns <= set(found["held_out"])


def test_one_latent_knows_the_planted_class_and_shuffled_labels_nothing(found):
    state = found["probing"]["labels"][0]
    best = next(row for row in state["alignment"] if row["representation"] == "autoencoder")
    crack = best["classes"][0]
    assert crack["auroc"]["value"] > 0.95
    neurons = next(row for row in state["alignment"] if row["representation"] == "raw activations")
    other = neurons["classes"][0]["auroc"]["value"]
    assert crack["difference"]["value"] == pytest.approx(crack["auroc"]["value"] - other)
    assert {row["representation"] for row in state["alignment"]} >= {"random directions", "PCA"}
    assert abs(best["control_mean_auroc"] - 0.5) < 0.1
    probe = next(row for row in state["probes"] if (row["representation"], row["pooling"]) == ("autoencoder", "max"))
    assert probe["scores"]["1"]["balanced_accuracy"] > 0.9


def test_markdown_states_the_same_numbers(evaluation, found):
    page = evaluation.file("evaluation.md").read_text()
    assert f"{found['held_out']['fvu']['value']:.3f}" in page
    assert "random dictionary" in page
    assert "shuffled labels" in page


def test_equal_input_gives_an_equal_id_and_a_killed_evaluation_goes_on(
    place, store, autoencoder, evaluation, monkeypatch
):
    settings = EvaluationSettings(probing=True, refit=True, bootstrap=200, clusters=16)
    stage = evaluation_stage(autoencoder, store, settings, seed=0)
    with monkeypatch.context() as patched:
        patched.setattr(sections, "probing", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run_stage(stage, place / "again")
    with monkeypatch.context() as patched:
        patched.setattr(sections, "held_out", lambda *_: 1 / 0)  # done before the kill: not measured again
        assert run_stage(stage, place / "again").id == evaluation.id


def test_the_sweep_summary_puts_members_and_baselines_on_one_plane(place, store, evaluation, autoencoder):
    other = trained(store, place / "short", tokens=2_000)
    second = run_stage(evaluation_stage(other, store, EvaluationSettings(bootstrap=50), seed=0), place / "second")
    summary = sweep_summary({"long": evaluation, "short": second})
    names = [point["name"] for point in summary["points"]]
    assert names[:2] == ["long", "short"]
    assert "PCA (long)" in names
    table = sweep_markdown(summary)
    rows, legend = table.split("\n\n", 1)
    assert len(rows.splitlines()) == len(names) + 2
    columns = [cell.strip() for cell in rows.splitlines()[0].split("|")[3:-1]]
    assert columns == ["L0", "FVU [95 %]", "cosine", "silent", "dense"]
    assert all(f"{column.split()[0]}:" in legend for column in columns)
    assert all(mark in legend for mark in ("\\* on the frontier", "–"))
    assert "tables are not compared" not in legend
    sealed = run_stage(sweep_stage({"long": evaluation, "short": second}), place / "sweep")
    assert sealed.file("sweep.md").read_text() == table
    assert json.loads(sealed.file("sweep.json").read_text()) == summary | {"stability": []}
    fewer = EvaluationSettings(bootstrap=0, baselines=False, max_images=10)
    smaller = run_stage(evaluation_stage(other, store, fewer, seed=0), place / "smaller")
    with pytest.raises(RequestError, match="different held-out images"):
        sweep_summary({"long": evaluation, "small": smaller})


def test_members_at_other_sites_are_on_planes_of_their_own(place, evaluation, monkeypatch):
    from saetool.evaluation import pareto

    good = json.loads(evaluation.file("evaluation.json").read_text())
    shallow = json.loads(json.dumps(good))
    shallow["subject"]["site"] = "layer 1 (blocks.0)"
    shallow["held_out"]["fvu"]["value"] /= 10  # easier activations, not a better model
    monkeypatch.setattr(pareto, "read_evaluation", lambda name: {"deep": good, "shallow": shallow}[name])
    summary = sweep_summary({"deep": "deep", "shallow": "shallow"})
    front = {point["name"]: point["frontier"] for point in summary["points"]}
    assert front["deep"]
    assert front["shallow"]
    text = sweep_markdown(summary)
    assert text.count("## ") == 2
    assert "## layer 1 (blocks.0)" in text
    assert "rows of two tables are not compared" in text


def test_what_is_not_measured_is_no_part_of_the_request():
    from saetool.evaluation import EvaluationSettings

    cheap, other = EvaluationSettings(), EvaluationSettings(effect_images=48, probe_images=7, stability=("a",))
    assert cheap.content() == other.content()
    assert EvaluationSettings(effect=True).content() != EvaluationSettings(effect=True, effect_images=48).content()
    assert EvaluationSettings(clusters=9).content() != cheap.content()


def test_members_that_differ_in_their_seed_only_are_compared(place, store, evaluation, autoencoder):
    models = {"a": autoencoder, "b": trained(store, place / "seed-1", seed=1), "c": trained(store, place / "0", seed=0)}
    models["rate"] = trained(store, place / "rate-1", tokens=2_000, seed=1)
    assert seed_pairs(models) == [("a", "b"), ("b", "c")]  # a's seed is the run's: 0
    stage = sweep_stage({"a": evaluation}, models)
    sealed = run_stage(stage, place / "seeds")
    found = json.loads(sealed.file("sweep.json").read_text())["stability"]
    assert [row["members"] for row in found] == [["a", "b"], ["b", "c"]]
    directions = [torch.nn.functional.normalize(load(models[n].path).decoder_directions(), dim=1) for n in "ab"]
    cosines = directions[0] @ directions[1].T
    assert found[0]["forward"]["mean_max_cosine"] == pytest.approx(float(cosines.amax(1).mean()), abs=1e-5)
    assert found[0]["backward"]["mean_max_cosine"] == pytest.approx(float(cosines.amax(0).mean()), abs=1e-5)
    assert "| a | b |" in sealed.file("sweep.md").read_text()
    assert {entry["id"] for entry in sealed.inputs} == {evaluation.id, *(model.id for model in models.values())}


def test_the_frontier_holds_what_nothing_beats():
    points = [{"l0": 1, "fvu": 0.5}, {"l0": 2, "fvu": 0.4}, {"l0": 2, "fvu": 0.6}, {"l0": 3, "fvu": 0.4}]
    assert [p["frontier"] for p in mark_frontier(points)] == [True, True, False, False]


def test_stability_compares_seeds_and_a_copy_is_perfect(place, store, autoencoder):
    other = trained(store, place / "other-rate", lr=5e-3)
    settings = EvaluationSettings(baselines=False, stability=(str(other.path), str(autoencoder.path)))
    artifact = run_stage(evaluation_stage(autoencoder, store, settings), place / "stability")
    rows = json.loads(artifact.file("evaluation.json").read_text())["stability"]
    assert [row["autoencoder"] for row in rows] == [other.id, autoencoder.id]
    assert rows[1]["forward"]["mean_max_cosine"] == pytest.approx(1, abs=1e-5)
    assert 0.3 < rows[0]["forward"]["mean_max_cosine"] < 1


def test_another_site_or_width_is_refused_naming_both(place, autoencoder):
    elsewhere = planted_store(place / "elsewhere", folder_name="other-rows")
    with pytest.raises(RequestError, match=r"trained on rows of .*not on other-rows of"):
        evaluation_stage(autoencoder, elsewhere, EvaluationSettings())
    wider = planted_store(place / "wider", d=20)
    with pytest.raises(RequestError, match=r"trained on rows .*width 16.*width 20"):
        evaluation_stage(autoencoder, wider, EvaluationSettings())


def test_images_of_another_store_of_the_same_site_are_welcome(place, autoencoder):
    other = planted_store(place / "other", seed=5)
    artifact = run_stage(evaluation_stage(autoencoder, other, EvaluationSettings(bootstrap=0)), place / "on-other")
    found = json.loads(artifact.file("evaluation.json").read_text())
    assert found["held_out"]["fvu"]["low"] is None
    assert found["training"] is None  # none of these was trained on


def test_no_labels_and_one_class_are_said_in_words(place, autoencoder):
    bare = planted_store(place / "bare", labels=False)
    settings = EvaluationSettings(probing=True, baselines=False)
    artifact = run_stage(evaluation_stage(autoencoder, bare, settings), place / "on-bare")
    found = json.loads(artifact.file("evaluation.json").read_text())
    assert "no category label with two classes" in found["probing"]["skipped"]
    assert "no category label with two classes" in artifact.file("evaluation.md").read_text()


def test_training_without_held_out_images_cannot_be_evaluated(place, store):
    settings = TypeAdapter(AutoencoderSettings).validate_python(
        {"kind": "sparse", "n_latents": 20, "penalty": {"kind": "l1", "weight": 0.1}}
    )
    made = train(store, settings, TrainingSettings(tokens=1024, batch_size=256, held_out=0), place / "all-seen")
    with pytest.raises(RequestError, match="no image was held out"):
        run_stage(evaluation_stage(made, store, EvaluationSettings()), place / "never")


def test_monosemanticity_is_read_from_the_index(place, store, autoencoder):
    features = index(autoencoder, store, place / "features")
    settings = EvaluationSettings(baselines=False, bootstrap=0)
    artifact = run_stage(evaluation_stage(autoencoder, store, settings, features=features), place / "with-features")
    found = json.loads(artifact.file("evaluation.json").read_text())["features"]["monosemanticity"]
    # Without another layer's embeddings the index leaves the score undefined.
    assert found["latents"] == sum(found["counts"]) == 0
    assert found["mean"] is None
    made = {"embedding": {"all_pairs": 0.125}}
    table = pyarrow.table({"monosemanticity": [0.5, None, 0.1, 0.5, -0.2]})
    stub = run_stage(
        Stage("features", {}, lambda partial: partial.write_table("latents.parquet", table) or made), place / "stub"
    )
    found = sections.features(None, stub)["monosemanticity"]
    assert (found["latents"], found["mean"], found["all_pairs"]) == (4, pytest.approx(0.225), 0.125)
    whole = json.loads(artifact.file("evaluation.json").read_text()) | {"features": {"monosemanticity": found}}
    shown = next(shown for shown in all_tables(whole) if shown["title"] == "Monosemanticity")
    assert shown["rows"][0][:3] == ["4 latents", "0.125", "0.225"]
    assert found["quantiles"]["0.5"] == pytest.approx(0.3)


def test_neurons_stand_beside_the_latents_specificity():
    rows = torch.randn(30, 4, 6, generator=torch.Generator().manual_seed(0))
    embedded = torch.randn(30, 1, 5, generator=torch.Generator().manual_seed(1)) + 1
    site = SimpleNamespace(n_images=30, d=5, rows=lambda start, stop: embedded[start:stop])
    subject = SimpleNamespace(store=SimpleNamespace(embedding=site), batches=lambda images: [rows[images]])
    table = pyarrow.table(
        {"monosemanticity_excess": [0.3, None, 0.1, -0.1], "monosemanticity_spread": [0.1, None, 0.06, 0.1]}
    )
    artifact = SimpleNamespace(inputs=[1, 2], config={})
    found = sections._specificity(subject, artifact, table)
    assert (found["latents"]["features"], found["latents"]["mean"]) == (3, pytest.approx(0.1))
    assert found["latents"]["above_two_deviations"] == pytest.approx(1 / 3)
    chance = Chance.of(unit_rows(embedded[:, 0]))
    slow = [chance.excess_of(values[:, None])[0] for way in (rows.amax(1), -rows.amin(1)) for values in way.T]
    assert found["neurons"]["mean"] == pytest.approx(np.mean(slow), abs=1e-6)
    assert (found["neurons"]["features"], found["neurons"]["images"]) == (12, 30)
    artifact.inputs.append(3)  # another model's embeddings
    assert sections._specificity(subject, artifact, table)["neurons"] is None
    assert sections._specificity(subject, artifact, table.select(["monosemanticity_spread"])) is None


def test_planning_an_evaluation_imports_neither_scikit_learn_nor_timm():
    code = (
        "import sys; import saetool.evaluation as e; e.evaluation_stage, e.EvaluationSettings; "
        "print([m for m in ('sklearn', 'timm', 'scipy', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_effect_without_a_backbone_and_a_foreign_index_are_refused(store, autoencoder, evaluation):
    with pytest.raises(RequestError, match="give both, or effect: false"):
        evaluation_stage(autoencoder, store, EvaluationSettings(effect=True))
    with pytest.raises(RequestError, match="index of another autoencoder"):
        evaluation_stage(autoencoder, store, EvaluationSettings(), features=Artifact.open(store.path))


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


def test_a_section_is_the_same_whether_it_was_made_now_or_by_an_earlier_start(tmp_path):
    journal = Journal(Partial(tmp_path / "x.partial", tmp_path / "x"))
    made = {"b": {"z": (1, 2), "a": 0.1}, "a": {10: 1, 9: None}}
    first = journal("section", lambda: made)
    again = Journal(Partial(tmp_path / "x.partial", tmp_path / "x"))("section", lambda: 1 / 0)
    assert json.dumps(first) == json.dumps(again)
    assert type(first["b"]["z"]) is list


@pytest.mark.parametrize("sections_done", [1, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 3, 4)), 5])
def test_an_evaluation_killed_after_any_section_ends_with_the_same_id(
    tmp_path, place, store, autoencoder, monkeypatch, sections_done
):
    features = index(autoencoder, store, place / "index-of-killed")
    other = trained(store, place / "other-seed", tokens=2_000, seed=1)
    settings = EvaluationSettings(bootstrap=20, clusters=8, probing=True, stability=(str(other.path),))
    stage = evaluation_stage(autoencoder, store, settings, features=features)
    whole = run_stage(stage, place / "whole-of-killed")
    record, done = Partial.record, []

    def killing(self, key, value):
        found = record(self, key, value)
        done.extend([key] if key.startswith("section/") else [])
        if len(done) == sections_done:
            raise Killed
        return found

    with monkeypatch.context() as patched:
        patched.setattr(Partial, "record", killing)
        with pytest.raises(Killed):
            run_stage(stage, tmp_path / "killed")
    assert run_stage(stage, tmp_path / "killed").id == whole.id
