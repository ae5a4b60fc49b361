"""The whole index against counting by hand: every number of every column."""

from itertools import pairwise

import numpy as np
import pyarrow.parquet as parquet
import pytest
import torch
from safetensors.torch import load_file
from scipy import stats
from sklearn.metrics import average_precision_score, roc_auc_score

from saetool.activations import ActivationStore, held_out_mask, write_store
from saetool.features import IndexSettings
from saetool.features.monosemanticity import image_embeddings

LABELS = [
    {"name": "kind", "kind": "category", "classes": ["a", "b", "c"]},
    {"name": "score", "kind": "number", "classes": None},
]


def random_store(seed: int, images: int = 11, grid: tuple[int, int] = (2, 3), latents: int = 7) -> dict:
    rng = np.random.default_rng(seed)
    shape = (images, grid[0] * grid[1], latents)
    z = np.where(rng.random(shape) < 0.2, rng.integers(1, 6, shape) / 3, -1.0)
    z[:, :, 0] = -1  # dead
    z[:, :, 1] = np.abs(z[:, :, 1])  # dense
    z[3:, :, 2] = -1  # fires on three images at most
    z[:3, 0, 2] = 1.5
    entries = [
        {"kind": None if rng.random() < 0.1 else "abc"[rng.integers(3)], "score": float(rng.integers(3))}
        for _ in range(images)
    ]
    z = torch.tensor(z, dtype=torch.float32)
    return {"z": z, "images": entries, "labels": LABELS, "grid": grid}


@pytest.fixture(scope="module", params=[0, 1])
def planted(request, build_index):
    given = random_store(request.param)
    artifact = build_index(**given, settings=IndexSettings(top=3, intervals=2, interval_examples=2, random=2))
    codes = given["z"].clamp_min(0).numpy()
    return artifact, codes, given


def column(artifact, name: str) -> list:
    return parquet.read_table(artifact.file("latents.parquet"))[name].to_pylist()


def test_counts_and_means_equal_brute_force(planted):
    artifact, z, _ = planted
    images, tokens, latents = z.shape
    held_out = held_out_mask(ActivationStore(artifact.find_input("activations")).digests, 5, 0.3)
    for j in range(latents):
        mine = z[:, :, j]
        fires = mine > 0
        row = {name: column(artifact, name)[j] for name in parquet.read_schema(artifact.file("latents.parquet")).names}
        assert row["latent"] == j
        assert row["token_count"] == fires.sum()
        assert row["token_frequency"] == fires.sum() / (images * tokens)
        assert row["image_count"] == fires.any(1).sum()
        assert row["image_frequency"] == fires.any(1).sum() / images
        assert row["held_out_token_count"] == fires[held_out].sum()
        assert row["silent_on_held_out"] == (not fires[held_out].any())
        assert row["mean"] == pytest.approx(mine.mean(dtype=float), abs=1e-9)
        assert row["decoder_norm"] == 2
        assert row["encoder_decoder_cosine"] == 1
        assert row["neighbor_similarity"] == 0
        if fires.any():
            assert row["max"] == mine.max()
            assert row["mean_firing"] == pytest.approx(mine[fires].mean(dtype=float), abs=1e-8)
            share = mine.sum(0, dtype=float) / mine.sum(dtype=float)
            entropy = -(share[share > 0] * np.log(share[share > 0])).sum() / np.log(tokens)
            assert row["spatial_entropy"] == pytest.approx(entropy, abs=1e-7)
        else:
            for name in ("max", "mean_firing", "spatial_entropy", "coactivation_similarity", "kind.auroc"):
                assert row[name] is None
        status = "dead" if not fires.any() else "dense" if fires.mean() > 0.1 else "ok"
        assert row["status"] == status
        assert row["monosemanticity"] is None
    counts = artifact.content["counts"]
    assert counts == {name: column(artifact, "status").count(name) for name in ("dead", "rare", "ok", "dense")}


def test_no_table_holds_nan(planted):
    artifact, *_ = planted
    for name in ("latents.parquet", "label_statistics.parquet", "examples.parquet"):
        table = parquet.read_table(artifact.file(name))
        for field in table.schema:
            if str(field.type) in ("float", "double"):
                values = [v for v in table[field.name].to_pylist() if v is not None]
                assert not np.isnan(values).any(), field.name


def test_examples_are_distinct_images_with_their_heat_maps(planted):
    artifact, z, _ = planted
    rows = parquet.read_table(artifact.file("examples.parquet")).to_pylist()
    held_out = held_out_mask(ActivationStore(artifact.find_input("activations")).digests, 5, 0.3)
    seen = set()
    for row in rows:
        j, image = row["latent"], row["image"]
        mine = z[image, :, j]
        key = (j, row["group"], row["interval"], image)
        assert key not in seen
        seen.add(key)
        assert row["value"] == mine.max() > 0
        assert row["patch"] == mine.argmax()
        assert row["held_out"] == held_out[image]
        top = z[:, :, j].max()
        assert row["heat_scale"] == top
        heat = np.frombuffer(row["heat"], np.uint8)
        wanted = np.where(mine > 0, np.clip(np.rint(mine / top * 255), 1, 255), 0)
        assert heat.tolist() == wanted.tolist()
        if row["interval"] is not None:
            assert top * row["interval"] < row["value"] * 2 <= top * (row["interval"] + 1)
    order = {"top": 0, "interval": 1, "random": 2, "held_out": 3}
    keys = [(r["latent"], order[r["group"]], r["interval"] or 0, r["rank"]) for r in rows]
    assert keys == sorted(keys)


def test_top_examples_equal_brute_force_and_dead_latents_have_none(planted):
    artifact, z, _ = planted
    rows = parquet.read_table(artifact.file("examples.parquet")).to_pylist()
    for j in range(z.shape[2]):
        best = z[:, :, j].max(1)
        wanted = sorted(np.flatnonzero(best), key=lambda image: (-best[image], image))[:3]
        assert [row["image"] for row in rows if row["latent"] == j and row["group"] == "top"] == wanted
    assert not any(row["latent"] == 0 for row in rows)
    assert sum(row["latent"] == 2 and row["group"] == "top" for row in rows) == 3


def test_the_strongest_held_out_images_are_a_group_of_their_own(planted):
    artifact, z, _ = planted
    rows = parquet.read_table(artifact.file("examples.parquet")).to_pylist()
    held_out = held_out_mask(ActivationStore(artifact.find_input("activations")).digests, 5, 0.3)
    for j in range(z.shape[2]):
        best = np.where(held_out, z[:, :, j].max(1), 0)
        wanted = sorted(np.flatnonzero(best), key=lambda image: (-best[image], image))[:8]
        assert [row["image"] for row in rows if row["latent"] == j and row["group"] == "held_out"] == wanted


def test_tensors_equal_brute_force(planted):
    artifact, z, _ = planted
    tensors = load_file(artifact.file("tensors.safetensors"))
    edges = tensors["histogram_edges"]
    assert tensors["histogram"].shape[1] == len(edges) - 1
    for j in range(z.shape[2]):
        values = torch.tensor(z[:, :, j][z[:, :, j] > 0])
        wanted = [int(((values > low) & (values <= high)).sum()) for low, high in pairwise(edges)]
        assert tensors["histogram"][j].tolist() == wanted
    np.testing.assert_allclose(tensors["spatial_profile"].T, z.mean(0, dtype=float), rtol=1e-6, atol=1e-9)
    assert bool(tensors["histogram"][:, 0].any())
    assert bool(tensors["histogram"][:, -1].any())


def test_neighbors_equal_brute_force(planted):
    artifact, z, _ = planted
    tensors = load_file(artifact.file("tensors.safetensors"))
    fires = (z > 0).any(1)
    for j in range(z.shape[2]):
        both = (fires & fires[:, [j]]).sum(0)
        either = (fires | fires[:, [j]]).sum(0)
        others = [i for i in range(z.shape[2]) if i != j and both[i] > 0]
        others.sort(key=lambda i: (-np.float32(both[i]) / np.float32(either[i]), i))
        found = tensors["neighbors_coactivation"][j].tolist()
        assert found == others + [-1] * (10 - len(others))
        values = [float(np.float32(both[i]) / np.float32(either[i])) for i in others]
        assert tensors["neighbors_coactivation_value"][j].tolist() == values + [0] * (10 - len(others))
        # Orthogonal decoder rows: all cosines are 0, ties go to the lowest latent.
        assert tensors["neighbors_decoder"][j].tolist() == [i for i in range(7) if i != j] + [-1] * 4


def test_strongest_latents_of_every_patch(planted):
    artifact, z, _ = planted
    patches = load_file(artifact.file("patches.safetensors"))
    assert patches["latents"].shape == (*z.shape[:2], 8)
    for image in range(z.shape[0]):
        for token in range(z.shape[1]):
            mine = z[image, token]
            order = sorted(np.flatnonzero(mine), key=lambda j: (-mine[j], j))[:8]
            assert patches["latents"][image, token].tolist() == order + [-1] * (8 - len(order))
            assert patches["values"][image, token].tolist() == mine[order].tolist() + [0] * (8 - len(order))


def of_class(scores: np.ndarray, member: np.ndarray) -> tuple[float | None, float | None]:
    """Return AUROC and average precision by scikit-learn, None where they are undefined."""
    if member.all() or not member.any() or not scores.any():
        return None, None
    return roc_auc_score(member, scores), average_precision_score(member, scores)


def test_every_label_number_equals_scikit_learn_and_scipy(planted):
    artifact, z, given = planted
    latents = parquet.read_table(artifact.file("latents.parquet")).to_pylist()
    rows = parquet.read_table(artifact.file("label_statistics.parquet")).to_pylist()
    kinds = np.array([entry["kind"] for entry in given["images"]], dtype=object)
    numbers = np.array([entry["score"] for entry in given["images"]])
    cut = sorted(numbers)[(len(numbers) - 1) // 2]
    cut = max(numbers[numbers < cut]) if cut == max(numbers) else cut
    sides = np.where(numbers > cut, f"> {cut:g}", f"≤ {cut:g}")
    given_out = np.array(parquet.read_table(artifact.file("images.parquet"))["held_out"].to_pylist())
    assert given_out.any()
    p_values = {"kind": {}, "score": {}}
    for label, classes, truth in (("kind", ["a", "b", "c"], kinds), ("score", [f"≤ {cut:g}", f"> {cut:g}"], sides)):
        known = np.array([value is not None for value in truth])
        for j, row in enumerate(latents):
            scores, mass = z[known, :, j].max(1).astype(float), z[known, :, j].sum(1, dtype=float)
            found = {r["class"]: r for r in rows if r["latent"] == j and r["label"] == label}
            if not scores.any():
                assert not found
                assert all(row[f"{label}.{name}"] is None for name in ("best_class", "auroc", "p_value", "purity"))
                continue
            wanted = {name: of_class(scores, truth[known] == name) for name in classes}
            share = [mass[truth[known] == name].sum() / mass.sum() for name in classes]
            for name, part in zip(classes, share, strict=True):
                member = truth[known] == name
                assert found[name]["images"] == member.sum()
                assert found[name]["firing_images"] == (scores[member] > 0).sum()
                assert found[name]["auroc"] == pytest.approx(wanted[name][0], abs=1e-12)
                assert found[name]["average_precision"] == pytest.approx(wanted[name][1], abs=1e-12)
                assert found[name]["mass_share"] == pytest.approx(part, abs=1e-8)
            sides = {"train_auroc": ~given_out[known], "held_out_auroc": given_out[known]}
            for column, part in sides.items():
                for name in classes:
                    area = of_class(scores[part], truth[known][part] == name)[0]
                    assert found[name][column] == (None if area is None else pytest.approx(area, abs=1e-12))
            best = max(
                classes, key=lambda name: -1 if found[name]["train_auroc"] is None else found[name]["train_auroc"]
            )
            assert row[f"{label}.best_class"] == best
            assert row[f"{label}.held_out_auroc"] == found[best]["held_out_auroc"]
            assert row[f"{label}.auroc"] == pytest.approx(wanted[best][0], abs=1e-12)
            assert row[f"{label}.average_precision"] == pytest.approx(wanted[best][1], abs=1e-12)
            assert row[f"{label}.purity"] == pytest.approx(max(share), abs=1e-8)
            entropy = -sum(part * np.log(part) for part in share if part > 0) / np.log(len(classes))
            assert row[f"{label}.entropy"] == pytest.approx(entropy, abs=1e-7)
            assert row[f"{label}.p_value"] == found[best]["p_value"]
            for name in classes:
                member = truth[known] == name
                if np.ptp(scores) == 0 or not member.any() or member.all():
                    assert found[name]["p_value"] is None
                    continue
                test = stats.mannwhitneyu(scores[member], scores[~member], use_continuity=False, method="asymptotic")
                assert found[name]["p_value"] == pytest.approx(test.pvalue, rel=1e-6)
                p_values[label][j, name] = found[name]["p_value"]
            if label == "kind" or np.ptp(scores) == 0:
                assert row[f"{label}.spearman"] is None
            else:
                assert row["score.spearman"] == pytest.approx(stats.spearmanr(scores, numbers).statistic, abs=1e-9)
    for label, tests in p_values.items():
        wanted = dict(zip(tests, stats.false_discovery_control(list(tests.values())), strict=True))
        for row in rows:
            if row["label"] == label:
                q = wanted.get((row["latent"], row["class"]))
                assert row["q_value"] == (None if q is None else pytest.approx(q))
        for j, row in enumerate(latents):
            q = wanted.get((j, row[f"{label}.best_class"]))
            assert row[f"{label}.q_value"] == (None if q is None else pytest.approx(q))
    assert len(p_values["kind"]) >= 4


@pytest.mark.parametrize("length", [1e-30, 1e16])
def test_an_embedding_counts_by_its_direction_however_long_it_is(tmp_path, length):
    """Squares of values far from 1 leave float32: such an image was like no other."""
    rows = torch.randn(6, 1, 4, generator=torch.Generator().manual_seed(0)).sign()
    scaled = rows.clone()
    scaled[2] *= length
    found = [
        image_embeddings(write_store(tmp_path / name, given).site()) for name, given in (("a", rows), ("b", scaled))
    ]
    np.testing.assert_allclose(found[1], found[0], atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found[1], axis=1), 1, atol=1e-6)
