"""The site holds what the artifacts say, in bytes that depend on nothing else, within its bounds."""

import dataclasses
import json
import re

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from saetool.activations import write_store
from saetool.artifacts import Stage, run_stage
from saetool.errors import RequestError, WorkError
from saetool.report import ReportSettings, check, report_stage
from saetool.report.chunks import unpack
from saetool.report.pictures import patches_chunks
from saetool.report.summary import summarize

HOSTILE_MARKS = ("pwned", "<img", "onerror")


def chunk(site, name):
    return unpack((site.path / "data" / f"{name}.js").read_bytes())[1:]


def members(bits):
    return np.flatnonzero(np.unpackbits(bits, bitorder="little")).tolist()


def test_a_finished_site_passes_its_check(site):
    assert check(site.path, max_mb=1) == []
    assert {"index.html", "latent.html", "image.html", "assets/core.js"} <= site.files.keys()


def test_the_table_has_every_latent_and_every_number(run, site):
    arrays, values = chunk(site, "table")
    table = run.features.path / "latents.parquet"
    latents = pq.read_table(table)
    assert arrays["status"].size == run.shape.n_latents
    texts = values["texts"]
    assert [texts["status"][i] for i in arrays["status"]] == latents["status"].to_pylist()
    for key in ("token_frequency", "max", "mean_firing", "kind.of <thing>.auroc"):
        wanted = [np.nan if v is None else np.float32(v) for v in latents[key].to_pylist()]
        np.testing.assert_array_equal(arrays[key].astype(np.float32), np.array(wanted, np.float32))
    key = "kind.of <thing>.best_class"
    found = [texts[key][i] if i >= 0 else None for i in arrays[key]]
    assert found == latents[key].to_pylist()
    q = np.array([np.nan if v is None else v for v in latents["kind.of <thing>.q_value"].to_pylist()])
    np.testing.assert_array_equal(arrays["kind.of <thing>.q_value"], q)
    assert "__proto__.best_class" not in arrays, "a column without a single value is left out"


def test_latent_chunks_hold_the_examples_in_order(run, site):
    site_arrays, site_values = chunk(site, "site")
    block = site_values["blocks"]["latents"]
    for number in range(-(-run.shape.n_latents // block)):
        arrays, values = chunk(site, f"latents/{number}")
        start = 0
        shown = np.array([entry[0] for entry in json.loads(arrays["shown"].tobytes())], np.int64)
        images = shown[arrays["image"]]
        assert len(shown) == len(set(shown)), "an image stands once a chunk"
        starts = np.concatenate([[0], np.cumsum(arrays["heat_counts"], dtype=np.int64)])
        for latent, count in enumerate(arrays["example_counts"].tolist(), values["start"]):
            peaks = run.z[:, :, latent].max(1)
            order = [i for i in np.argsort(-peaks, kind="stable") if peaks[i] > 0][: run.shape.top]
            rows = slice(start, start + count)
            top = arrays["group"][rows] == 0
            assert images[rows][top].tolist() == order
            np.testing.assert_array_equal(arrays["value"][rows][top], peaks[order])
            assert (arrays["patch"][rows][top] == run.z[order, :, latent].argmax(1)).all()
            for image, map_ in zip(images[rows].tolist(), arrays["map"][rows].tolist(), strict=True):
                positions = arrays["heat_positions"][starts[map_] : starts[map_ + 1]]
                assert positions.tolist() == np.flatnonzero(run.z[image, :, latent]).tolist()
            start += count
        assert start == arrays["image"].size
    assert members(site_arrays["live"]) == np.flatnonzero(run.z.any((0, 1))).tolist()


def test_the_command_is_a_note_and_no_identity(run, site, tmp_path):
    other = run_stage(run.stage("saetool run another.yaml training.checkpoint_minutes=1"), tmp_path / "report")
    assert other.id == site.id
    assert other.manifest["recipe"] == site.manifest["recipe"]
    assert chunk(other, "command")[1] == {"command": "saetool run another.yaml training.checkpoint_minutes=1"}
    assert "data/command.js" in other.notes["logs"]


def test_an_evaluation_brings_no_links():
    from saetool.report.summary import _evaluation

    point = {"name": "x", "l0": 1.0, "fvu": 0.5, "link": "javascript:alert(1)"}

    assert _evaluation({"pareto": [point], "tables": []})["pareto"] == [{"name": "x", "l0": 1.0, "fvu": 0.5}]


def test_patch_chunks_hold_the_strongest_latents(run, site):
    arrays, values = chunk(site, "patches/0")
    shape = (arrays["rows"].size, values["tokens"], values["strongest"])
    latent, share = arrays["latent"].reshape(shape).astype(int) - 1, arrays["share"].reshape(shape).astype(int)
    top = arrays["top"].reshape(shape[:2])
    for k, image in enumerate(arrays["rows"].tolist()):
        np.testing.assert_array_equal(top[k], run.z[image].max(1))
        found = np.where(latent[k] >= 0, top[k][:, None] * share[k] / values["steps"], 0)
        wanted = np.where(latent[k] >= 0, np.take_along_axis(run.z[image], np.maximum(latent[k], 0), 1), 0)
        np.testing.assert_allclose(found, wanted, atol=top.max() / 500)


def test_the_lower_end_of_the_best_class_stands_beside_it(run, site):
    arrays, _ = chunk(site, "table")
    latents = pq.read_table(run.features.path / "latents.parquet")
    statistics = pq.read_table(run.features.path / "label_statistics.parquet").to_pylist()
    wanted = np.full(run.shape.n_latents, np.nan, np.float32)
    for latent, best in enumerate(latents["kind.of <thing>.best_class"].to_pylist()):
        for row in statistics:
            if row["latent"] == latent and row["class"] == best:
                wanted[latent] = row["auroc_low"]
    assert 0 < np.isnan(wanted).sum() < wanted.size
    np.testing.assert_array_equal(arrays["kind.of <thing>.auroc_low"], wanted)


def test_base_rates_stand_beside_the_best_class(run, site):
    arrays, values = chunk(site, "table")
    label = "kind.of <thing>"
    kinds = run.store.read_table("images.parquet")[label].to_pylist()
    names = values["texts"][f"{label}.best_class"]
    for best, rate in zip(arrays[f"{label}.best_class"].tolist(), arrays[f"{label}.base_rate"].tolist(), strict=True):
        if best < 0:
            assert np.isnan(rate)
        else:
            assert rate == pytest.approx(kinds.count(names[best]) / len(kinds))


def test_image_pages_go_to_the_blocks_of_the_best_images(run, tmp_path):
    path = run.features.path / "patches.safetensors"
    found = [rows.tolist() for rows, _, _ in patches_chunks(path, np.array([20, 3, 17, 1]), run.shape.n_latents)]
    assert found == [[20], [1, 3], [17]]


def test_boxes_follow_the_geometry(run, site):
    arrays, _ = chunk(site, "images/0")
    shown, box = json.loads(arrays["shown"].tobytes()), arrays["box"].reshape(-1, 4) / 8192
    # 90 × 60 is resized to 48 × 32: the grid of 48 × 32 covers it whole. 60 × 90 loses the top and bottom thirds
    # of its height beyond 32 of 48 pixels, and is padded to 48 of 32 pixels in width.
    assert [entry[2:4] for entry in shown[:2]] == [[90, 60], [60, 90]]
    np.testing.assert_allclose(box[0], [0, 0, 1, 1], atol=1e-4)
    np.testing.assert_allclose(box[1], [-0.25, 1 / 6, 1.25, 5 / 6], atol=1e-4)


def test_no_hostile_text_reaches_a_page_or_ends_a_script(site):
    for name in site.files:
        data = (site.path / name).read_bytes()
        if name.endswith(".html"):
            assert not any(mark.encode() in data for mark in HOSTILE_MARKS)
        if name.startswith("data/"):
            assert b"<" not in data


def test_equal_runs_give_equal_bytes(run, site, tmp_path):
    again = run_stage(run.stage(), tmp_path / "report")
    assert again.id == site.id
    assert {n: f["digest"] for n, f in again.files.items()} == {n: f["digest"] for n, f in site.files.items()}


def test_no_time_host_or_absolute_path_in_any_file(run, site):
    import platform

    for name in site.files:
        data = (site.path / name).read_bytes()
        assert str(run.store.path.parent).encode() not in data
        assert len(platform.node()) < 4 or platform.node().encode() not in data


def test_chosen_latents_get_pages_and_all_stay_in_the_table(run, tmp_path):
    site = run_stage(run.stage(latents=[1, 40]), tmp_path / "report")
    arrays, _ = chunk(site, "site")
    assert members(arrays["with_page"]) == [1, 40]
    assert sorted(p.name for p in (site.path / "data/latents").iterdir()) == ["0.js", "5.js"]
    assert chunk(site, "table")[0]["status"].size == run.shape.n_latents
    assert check(site.path) == []


def test_a_latent_that_does_not_exist_is_refused(run):
    with pytest.raises(RequestError, match=r"report\.latents: 70 .* 0 to 69"):
        run.stage(latents=[3, 70])


def test_max_images_keeps_the_strongest_examples(run, tmp_path):
    site = run_stage(run.stage(max_images=3), tmp_path / "report")
    arrays, _ = chunk(site, "site")
    peaks = run.z.max(1)
    best = sorted({int(peaks[:, latent].argmax()) for latent in range(run.shape.n_latents) if peaks[:, latent].any()})
    assert members(arrays["image_page"]) == best[:3]
    assert check(site.path) == []


def test_every_image_has_a_page_and_a_thumbnail(run, site, tmp_path):
    few = run_stage(run.stage(max_images=3), tmp_path / "report")
    assert members(chunk(few, "site")[0]["thumbnail"]) == list(range(run.shape.n_images))
    arrays, _ = chunk(few, "images/0")
    latent, value = (arrays[name].reshape(run.shape.n_images, -1) for name in ("latent", "value"))
    count = (run.z > 0).any(1).sum(0)
    for image in range(run.shape.n_images):
        kept = np.argsort(-run.z[image], axis=1, kind="stable")[:, :8]
        mine = np.zeros(run.shape.n_latents)
        for patch, latents in enumerate(kept):
            mine[latents] = np.maximum(mine[latents], run.z[image, patch, latents])
        score = mine * np.log(run.shape.n_images / np.maximum(count, 1))
        wanted = [i for i in np.lexsort((np.arange(len(mine)), -score)) if mine[i] > 0][: latent.shape[1]]
        assert latent[image][latent[image] >= 0].tolist() == wanted
        np.testing.assert_array_equal(value[image][: len(wanted)], mine[wanted].astype(np.float32))


def test_a_store_made_from_tensors_is_summarized_too(run, tmp_path):
    store = write_store(tmp_path / "store", np.zeros((2, 1, 3), np.float32)).artifact
    assert summarize(None, store, run.autoencoder, None)["source"] == "images"


def test_max_mb_leaves_out_pages_and_pictures_but_no_row(run, tmp_path):
    site = run_stage(run.stage(max_mb=0.1), tmp_path / "report")
    arrays, _ = chunk(site, "site")
    data = sum(f["bytes"] for n, f in site.files.items() if n.startswith(("data/", "thumbs/")))
    assert data < 100_000 + 5_000
    assert len(members(arrays["with_page"])) < run.shape.n_latents
    assert chunk(site, "table")[0]["status"].size == run.shape.n_latents
    assert check(site.path) == []


def test_thumbnails_are_small_and_keep_their_shape(run, site):
    for image in range(4):
        with Image.open(site.path / f"thumbs/0/{image}.webp") as picture:
            assert picture.size == run.pictures.size(image)
            assert picture.format == "WEBP"


def test_another_picture_at_the_same_place_is_an_error(run, tmp_path):
    class Swapped(type(run.pictures)):
        def read(self, i):
            picture = super().read(i)
            return dataclasses.replace(picture, digest="xxh3-128:0") if i == 5 else picture

    other = dataclasses.replace(run, pictures=Swapped(run.shape.n_images))
    with pytest.raises(WorkError, match=re.escape(run.pictures.path(5))):
        run_stage(other.stage(), tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_a_source_without_the_images_is_an_error(run, tmp_path):
    other = dataclasses.replace(run, pictures=type(run.pictures)(10))
    with pytest.raises(WorkError, match="not in the image source"):
        run_stage(other.stage(), tmp_path / "report")


def test_a_link_in_a_forged_evaluation_does_not_reach_the_page(run, tmp_path):
    point = {"name": "x", "kind": "baseline", "l0": 1.0, "fvu": 0.5, "fvu_interval": [0.4, 0.6], "frontier": True}

    def build(partial):
        table = {"title": "t", "note": "n", "columns": ["latent", "x"], "rows": [["a", 3]]}
        partial.write_json("evaluation.json", {"pareto": [{**point, "link": "javascript:alert(1)"}], "tables": [table]})
        return {}

    evaluation = run_stage(Stage("evaluation", {}, build, (run.autoencoder,)), tmp_path / "evaluation")
    stage = report_stage(run.features, run.store, run.autoencoder, evaluation, run.pictures, ReportSettings())
    made = run_stage(stage, tmp_path / "report")
    assert unpack(made.read_bytes("data/curves.js"))[2]["pareto"] == [point]
    assert not any(b"javascript:" in made.read_bytes(name) for name in made.files)
