"""What is shown first, what is said of a latent, and what is junk: against slow and obvious computations."""

import dataclasses
import itertools
import json
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from saetool.artifacts import run_stage
from saetool.report.chunks import unpack
from saetool.report.doors import junk, labels_chunk
from saetool.report.facts import ImageFacts
from saetool.report.first import Interest
from saetool.report.places import Places
from saetool.report.source import FeatureFiles
from saetool.report.summary import verdict
from saetool.report.words import Words, percent

LABEL = "kind.of <thing>"


@pytest.fixture(scope="module")
def interest(run) -> Interest:
    files = FeatureFiles(run.features)
    facts = ImageFacts(run.store.read_table("images.parquet"), run.features.content["labels"], None)
    return Interest(files, files.places, Words(files.latents, files.places, facts))


@dataclasses.dataclass
class Planted:
    """An index in memory: 40 training and 10 held-out images, latents that break one rule of the first look each."""

    latents: pa.Table
    tensors: dict
    n_latents: int
    held_out: np.ndarray

    def tensor(self, name):
        return self.tensors.get(name)


IMAGES, SEEN = 50, 40
NAMES = ["best", "twin direction", "same images", "positional", "on all", "on held-out only", "other", "dead", "weaker"]


@pytest.fixture
def planted() -> Interest:
    rng = np.random.default_rng(0)
    n = len(NAMES)
    fires = np.zeros((n, IMAGES), bool)
    for latent, (first, step) in enumerate([(0, 4), (1, 4), (0, 4), (2, 4), (0, 1), (40, 1), (3, 4), (0, 1), (3, 5)]):
        fires[latent, first::step] = True
    fires[7] = False
    directions = np.eye(n, 16) * 100
    directions[1] = directions[0] + 10 * rng.random(16)
    status = ["dead" if name == "dead" else "ok" for name in NAMES]
    table = pa.table(
        {
            "status": status,
            "image_count": fires.sum(1),
            "image_frequency": fires.mean(1),
            "spatial_entropy": [0.2 if name == "positional" else 0.9 for name in NAMES],
            "top_excess": [0.9, 0.8, 0.7, 0.6, 0.5, 0.45, 0.4, np.nan, 0.1],
        }
    )
    latent, image = np.nonzero(fires)
    rank = np.concatenate([np.arange(count) for count in fires.sum(1)])
    kept = rank < 8
    zeros = np.zeros(int(kept.sum()), np.int8)
    places = Places(latent[kept], zeros, rank[kept], image[kept], zeros, image[kept] >= SEEN)
    tensors = {
        "fires": np.packbits(fires, axis=1, bitorder="little"),
        "sample_images": np.arange(IMAGES),
        "decoder_directions": directions.astype(np.int8),
    }
    held_out = np.arange(IMAGES) >= SEEN
    facts = ImageFacts(pa.table({"path": [""] * IMAGES}), [], None)
    return Interest(Planted(table, tensors, n, held_out), places, Words(table, places, facts))  # pyright: ignore


def test_the_first_look_begins_with_what_breaks_no_rule(planted):
    names = [NAMES[latent] for latent in planted.first_look]
    assert names[:3] == ["best", "other", "weaker"]
    assert "twin direction" not in names
    assert "same images" not in names
    assert "dead" not in names
    assert planted.order[: len(names)].tolist() == planted.first_look
    assert NAMES[planted.order[-1]] == "dead"


def test_shares_are_of_the_training_images(planted):
    assert planted.training_share[NAMES.index("on held-out only")] == 0
    assert planted.training_share[NAMES.index("best")] == 0.25


def test_none_of_the_first_look_is_near_another(interest, run):
    chosen = interest.first_look
    assert len(chosen) == len(set(chosen)) > 3
    peaks, fires = run.z.max(1), (run.z > 0).any(1)
    for a, b in itertools.combinations(chosen, 2):
        top = [{i for i in np.argsort(-peaks[:, j], kind="stable")[:6] if peaks[i, j] > 0} for j in (a, b)]
        assert len(top[0] & top[1]) <= 2
        assert (fires[:, a] & fires[:, b]).sum() <= 0.2 * (fires[:, a] | fires[:, b]).sum()


def test_a_sentence_says_what_the_strongest_images_have_in_common():
    kinds = ["sound"] * 8 + ["cracked"] * 2
    facts = ImageFacts(
        pa.table({"path": [""] * 10, "kind": kinds, "size": [float(i) for i in range(10)]}),
        [{"name": "kind", "kind": "category", "classes": ["sound", "cracked"]},
         {"name": "size", "kind": "number", "classes": None}],
        None,
    )  # fmt: skip
    latents = pa.table({"status": ["ok", "ok", "dead"], "image_frequency": [0.2, 0.004, 0.0]})
    latent, image = np.array([0, 0, 1, 1]), np.array([8, 9, 0, 9])
    zeros = np.zeros(4, np.int8)
    words = Words(latents, Places(latent, zeros, np.array([0, 1, 0, 1]), image, zeros, zeros), facts)
    # 2 of 2 where the base rate is .2: (2 − .4) / √(.4 · .8) standard deviations above it.
    assert words.enrichment[0] == pytest.approx(1.6 / 0.32**0.5)
    assert words.sentence(0) == "Fires on 20% of images."
    many = Words(
        latents,
        Places(np.zeros(8, int), np.zeros(8, np.int8), np.arange(8), np.array([8, 9] * 4), np.zeros(8), np.zeros(8)),
        facts,
    )
    assert many.sentence(0) == "Fires on 20% of images; 8 of its 8 strongest are “cracked”, base rate 20%."
    assert words.sentence(1) == "Fires on 0.4% of images."
    assert words.sentence(2) == "Never fires on any of these images."


@pytest.mark.parametrize(
    ("share", "said"), [(0, "0%"), (1, "100%"), (0.274, "27%"), (0.0512, "5.1%"), (0.00004, "0.004%")]
)
def test_shares_are_said_in_two_digits(share, said):
    assert percent(share) == said


def test_a_class_is_led_by_the_surest_of_its_latents(interest, run):
    _, arrays, values = unpack(labels_chunk(interest))
    latents = pq.read_table(run.features.path / "latents.parquet").to_pydict()
    rows = pq.read_table(run.features.path / "label_statistics.parquet").to_pylist()
    classes = json.loads(arrays["classes"].tobytes())
    images = run.store.read_table("images.parquet")[LABEL].to_pylist()
    found = arrays["latent"].reshape(len(classes), values["each"])
    assert len(classes) == 7
    for k, (label, name, _, share, total) in enumerate(classes):
        sure = [
            row
            for row in rows
            if (row["label"], row["class"]) == (label, name)
            and latents["status"][row["latent"]] in ("ok", "dense")
            and latents["image_count"][row["latent"]] >= 8
            and latents[f"{LABEL}.q_value"][row["latent"]] <= 0.05
            and row["auroc"] > 0.5
        ]
        wanted = [row["latent"] for row in sorted(sure, key=lambda row: (-row["auroc_low"], row["latent"]))]
        assert found[k][found[k] >= 0].tolist() == wanted[: values["each"]]
        assert total == len(wanted)
        assert share == pytest.approx(4 / sum(one is not None for one in images))


def test_junk_is_counted_as_the_table_counts_it(interest, run):
    latents = pq.read_table(run.features.path / "latents.parquet").to_pydict()
    living = [i for i, status in enumerate(latents["status"]) if status in ("ok", "dense")]
    wanted = {
        "Near copies": sum(latents["neighbor_similarity"][i] >= 0.8 for i in living),
        "Positional": sum(latents["spatial_entropy"][i] <= 0.5 and latents["image_count"][i] >= 8 for i in living),
        "Rare": latents["status"].count("rare"),
        "Silent on held-out images": sum(latents["silent_on_held_out"][i] for i in living),
        "Dense": latents["status"].count("dense"),
        "Dead": latents["status"].count("dead"),
    }
    assert {kind["name"]: kind["count"] for kind in junk(interest)} == wanted


def test_where_most_codes_are_dense_that_is_no_junk(interest):
    latents = interest.files.latents
    dense = latents.set_column(latents.column_names.index("status"), "status", pa.array(["dense"] * latents.num_rows))
    of_all = SimpleNamespace(files=SimpleNamespace(latents=dense))
    assert {kind["name"]: kind["count"] for kind in junk(of_all)}["Dense"] == 0


@pytest.mark.parametrize(
    ("family", "said"), [("sparse", "PCA, as sparse: 80%; "), ("variational", ""), ("one of a user's, 9 of 64", "")]
)
def test_pca_beside_the_verdict_is_the_one_that_compares(family, said):
    number = {"fvu": {"value": 0.1}, "l0": {"value": 9.0}}
    baselines = [
        {"name": name, "numbers": {"explained_variance": {"value": value}}}
        for name, value in (("PCA", 0.8), ("PCA, fixed", 0.7))
    ]
    told = verdict(
        {"grid": None}, {"settings": {"kind": family}, "n_latents": 64}, {"held_out": number, "baselines": baselines}
    )
    wanted = "90% of variance explained on held-out images with 9 latents a token; "
    assert told == f"{wanted}{said}PCA, as many fixed components: 70%."


def test_the_least_interesting_latents_lose_their_page_first(interest, run, tmp_path):
    small = run_stage(run.stage(max_mb=0.1), tmp_path / "report")
    with_page = np.unpackbits(unpack(small.read_bytes("data/site.js"))[1]["with_page"], bitorder="little")[:70]
    kept = {latent // 8 for latent in np.flatnonzero(with_page)}
    assert 0 < len(kept) < 9
    best = list(dict.fromkeys(latent // 8 for latent in interest.order.tolist()))
    assert kept == set(best[: len(kept)])


def test_without_embeddings_classes_of_training_images_choose(planted):
    """Latent 0 is of one class on its training images only; latent 6 on held-out ones only."""
    kinds = ["b"] * IMAGES
    for image in range(0, SEEN, 4):
        kinds[image] = "a"
    labels = [{"name": "kind", "kind": "category", "classes": ["a", "b"]}]
    facts = ImageFacts(pa.table({"path": [""] * IMAGES, "kind": kinds}), labels, None)
    planted.files.latents = planted.files.latents.drop_columns(["top_excess"])
    words = Words(planted.files.latents, planted.places, facts)
    interest = Interest(planted.files, planted.places, words)
    assert interest.first_look[0] == NAMES.index("best")
    assert interest.score[NAMES.index("on held-out only")] == -np.inf
