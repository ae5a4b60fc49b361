"""What splicing and ablating do to a model: every number against a direct computation, and the stage end to end."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import TypeAdapter
from torch import nn

from saetool.activations import CacheSettings, cache
from saetool.artifacts import run_stage
from saetool.autoencoders.base import Autoencoder
from saetool.autoencoders.families import AutoencoderSettings
from saetool.autoencoders.sparse import SparseAutoencoder
from saetool.autoencoders.sparse_settings import SparseSettings
from saetool.errors import RequestError
from saetool.evaluation import EvaluationSettings, evaluation_stage
from saetool.evaluation.attribution import attribute, class_effects
from saetool.evaluation.baselines import Dictionary
from saetool.evaluation.effect import CONDITIONS, _paired, measure_effect, share_recovered, summarize
from saetool.evaluation.interventions import intervene, splice
from saetool.evaluation.model_sections import effect
from saetool.evaluation.readout import Readout, find_head, linear_probe
from saetool.evaluation.subject import Subject
from saetool.images import ImageSettings, open_source
from saetool.training import TrainingSettings, train
from saetool.vision import BackboneSettings, load_backbone, wrap


class Small(nn.Module):
    """Patches, two blocks, a nonlinear rest, a linear head over three classes."""

    def __init__(self, d=8, linear=False):
        super().__init__()
        self.embed = nn.Conv2d(3, d, 2, stride=2)
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(d, d), nn.Tanh()) for _ in range(2)])
        self.rest = nn.Identity() if linear else nn.Sequential(nn.Linear(d, d), nn.GELU())
        self.head = nn.Linear(d, 3)

    def forward(self, images):
        x = self.embed(images).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        return self.head(self.rest(x.mean(1)))


class Relu(Autoencoder):
    """Random ReLU latents with a linear decoder in raw units."""

    def __init__(self, d=8, n_latents=12):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.d_in, self.n_latents = d, n_latents
        self.encoder = nn.Parameter(torch.randn(n_latents, d, generator=generator))
        self.decoder = nn.Parameter(torch.randn(n_latents, d, generator=generator) / 4)

    def encode(self, x):
        return torch.relu(x @ self.encoder.T)

    def decode(self, z):
        return z @ self.decoder

    def decoder_directions(self):
        return self.decoder.detach()


def model(linear=False):
    torch.manual_seed(0)
    backbone = wrap(Small(linear=linear), [2], image_size=4)
    autoencoder = Relu()
    autoencoder.site = backbone.describe_site(backbone.site(2))
    return backbone, autoencoder


def pictures(n=6):
    return torch.randn(n, 3, 4, 4, generator=torch.Generator().manual_seed(1))


def test_the_head_is_found_by_its_number_of_classes():
    backbone, _ = model()
    assert find_head(backbone, 3) == "head"
    assert find_head(backbone, 4) is None


class Forwarding(nn.Module):
    """Shows what it wraps, as `torch.compile` and PEFT do."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def __getattr__(self, name):
        return super().__getattr__(name) if name == "inner" else getattr(self.inner, name)

    def forward(self, x):
        return self.inner(x)


def test_the_head_of_a_wrapped_model_is_found():
    wrapped = wrap(Forwarding(Small()), ["inner.blocks.1"], image_size=4)
    assert find_head(wrapped, 3) == "head"


def test_the_embedding_is_what_the_head_reads():
    backbone, _ = model()
    embedding, logits = Readout(backbone, "head")(pictures())
    assert torch.allclose(backbone.model.head(embedding), logits, atol=1e-6)
    assert torch.equal(logits, backbone.output(pictures()))
    embedding, nothing = Readout(backbone)(pictures())
    assert torch.equal(embedding, backbone.output(pictures()))
    assert nothing is None


@pytest.mark.parametrize("n_classes", [2, 3])
def test_a_linear_probe_predicts_like_scikit_learns(n_classes):
    generator = torch.Generator().manual_seed(0)
    classes = ["b", "a", "c"][:n_classes]
    labels = np.array([classes[i % n_classes] for i in range(90)])
    embeddings = torch.randn(90, 5, generator=generator) * torch.tensor([1, 10, 0.1, 1, 5])
    embeddings[:, 2] += 0.3 * torch.tensor([classes.index(name) for name in labels])
    weight, bias = linear_probe(embeddings, labels, classes)
    assert weight.shape == (n_classes, 5)
    assert torch.allclose(weight.sum(0), torch.zeros(5), atol=1e-4)
    predicted = [classes[i] for i in (embeddings @ weight.T + bias).argmax(1)]
    assert np.mean(np.array(predicted) == labels) > 0.9


def test_baselines_are_spliced_in_the_same_place_and_differ_by_what_they_differ():
    backbone, autoencoder = model()
    readout, images, target = Readout(backbone, "head"), pictures(), torch.tensor([0, 1, 2, 0, 1, 2])
    perfect, mean = Dictionary(torch.zeros(8), torch.eye(8)), torch.zeros(8)
    nothing = Dictionary(mean, torch.eye(8)[:1] * 0)
    beside = {"perfect": perfect, "nothing": nothing}
    sums = measure_effect(readout, autoencoder, iter([(images, target)]), mean, beside=beside)
    found = summarize(sums, seed=0, resamples=50)
    assert list(found["conditions"]) == [*CONDITIONS, "perfect", "nothing"]
    for number in found["conditions"]["clean"]:
        value = {name: numbers[number]["value"] for name, numbers in found["conditions"].items()}
        assert value["perfect"] == pytest.approx(value["clean"], abs=1e-5)
        assert value["nothing"] == pytest.approx(value["zero_ablation"], abs=1e-5)
        for name in beside:
            difference = found["differences"][name][number]["value"]
            assert difference == pytest.approx(value[name] - value["spliced"], abs=1e-6)


def test_where_an_ablation_costs_little_nothing_is_recovered():
    lost, regained = torch.full((40,), 0.03), torch.full((40,), 0.02)
    pairs = torch.stack([regained, lost], dim=1)
    assert share_recovered(pairs, 0, 50)["value"] == pytest.approx(2 / 3)
    assert share_recovered(pairs, 0, 50, least=0.05)["value"] is None


def test_every_number_of_every_condition_equals_a_direct_computation():
    backbone, autoencoder = model()
    readout, images, target = Readout(backbone, "head"), pictures(), torch.tensor([0, 1, 2, 0, 1, 2])
    mean = torch.linspace(-0.5, 0.5, 8)
    sums = measure_effect(readout, autoencoder, iter([(images[:4], target[:4]), (images[4:], target[4:])]), mean)
    found = summarize(sums, seed=0, resamples=50)
    x = backbone.forward_to(images, [backbone.site(2)])[0]
    replaced = {
        "clean": x,
        "spliced": autoencoder(x),
        "spliced_with_error": x,
        "mean_ablation": mean.expand_as(x),
        "zero_ablation": torch.zeros_like(x),
    }
    clean_embedding = backbone.model.rest(x.mean(1)).double()
    clean = backbone.model.head(clean_embedding.float()).double().softmax(-1)
    assert set(found["conditions"]) == set(CONDITIONS)
    for name, value in replaced.items():
        embedding = backbone.model.rest(value.mean(1)).double()
        p = backbone.model.head(embedding.float()).double().softmax(-1)
        of_target = p[torch.arange(6), target]
        difference = (embedding - clean_embedding).norm(dim=-1)
        expected = {
            "embedding_cosine": torch.cosine_similarity(embedding, clean_embedding).mean(),
            "embedding_relative_error": (difference / clean_embedding.norm(dim=-1)).mean(),
            "kl_from_clean": (clean * (clean / p).log()).sum(-1).mean(),
            "agreement": (p.argmax(-1) == clean.argmax(-1)).double().mean(),
            "accuracy": (p.argmax(-1) == target).double().mean(),
            "cross_entropy": -of_target.log().mean(),
            "probability": of_target.mean(),
        }
        for key, slow in expected.items():
            assert found["conditions"][name][key]["value"] == pytest.approx(float(slow.detach()), abs=2e-6), (name, key)
    values = {name: found["conditions"][name]["cross_entropy"]["value"] for name in CONDITIONS}
    share = (values["spliced"] - values["zero_ablation"]) / (values["clean"] - values["zero_ablation"])
    recovered = share_recovered(_paired(sums, "cross_entropy", "zero_ablation"), 0, resamples=0)
    assert recovered == {"value": pytest.approx(share), "low": None, "high": None}
    assert set(found["share_recovered"]["zero_ablation"]) == {
        "embedding_cosine", "accuracy", "cross_entropy", "kl_from_clean", "probability"
    }  # fmt: skip


def test_shares_run_from_the_ablation_to_clean():
    def share(clean, spliced, ablated):
        clean, spliced, ablated = (torch.as_tensor(x, dtype=torch.float64).expand(4) for x in (clean, spliced, ablated))
        return share_recovered(torch.stack([spliced - ablated, clean - ablated], dim=1), 0, 50)

    assert share(1.0, 1.0, 0.2) == {"value": 1, "low": 1, "high": 1}
    assert share(1.0, 0.2, 0.2) == {"value": 0, "low": 0, "high": 0}
    assert share(1.0, 0.5, 1.0) == {"value": None, "low": None, "high": None}
    # The ablation helps on half of the images: whether it costs anything is not known.
    assert share([1.0, 1.0, 0.0, 0.0], 0.5, [0.0, 0.0, 1.0, 0.9])["value"] is None


def test_the_interval_of_a_share_draws_images_with_all_their_conditions():
    rng = np.random.default_rng(0)
    lost = torch.from_numpy(rng.uniform(0.5, 3, 40))
    exact = share_recovered(torch.stack([0.7 * lost, lost], dim=1), 0, 500)
    assert (exact["value"], exact["low"], exact["high"]) == pytest.approx((0.7, 0.7, 0.7))
    regained = lost * torch.from_numpy(rng.uniform(0.4, 1, 40))
    found = share_recovered(torch.stack([regained, lost], dim=1), 0, 2000)
    draws = rng.integers(0, 40, (4000, 40))
    slow = regained.numpy()[draws].sum(1) / lost.numpy()[draws].sum(1)
    assert found["value"] == pytest.approx(float(regained.sum() / lost.sum()))
    assert (found["low"], found["high"]) == pytest.approx(tuple(np.quantile(slow, [0.025, 0.975])), abs=0.02)


def test_without_labels_only_the_embedding_is_measured():
    backbone, autoencoder = model()
    found = summarize(measure_effect(Readout(backbone), autoencoder, iter([(pictures(), None)]), torch.zeros(8)), 0, 10)
    assert set(found["conditions"]["clean"]) == {"embedding_cosine", "embedding_relative_error"}


def ablation_effect(readout, autoencoder, images, latent, index):
    clean = readout(images)[1][:, index]
    with intervene(readout.backbone, autoencoder, {latent: 0}):
        return (readout(images)[1][:, index] - clean).sum()


def test_attribution_is_exact_up_to_a_linear_head_for_every_latent():
    backbone, autoencoder = model(linear=True)
    readout, images = Readout(backbone, "head"), pictures()
    found = attribute(readout, autoencoder, images, torch.full((6,), 1))
    slow = [float(ablation_effect(readout, autoencoder, images, j, 1)) for j in range(12)]
    assert np.allclose(found, slow, atol=1e-5)
    assert max(map(abs, slow)) > 0.1


def test_attribution_is_in_each_rows_own_units_under_layer_norm():
    backbone, _ = model(linear=True)
    settings = SparseSettings(kind="sparse", n_latents=12, activation={"kind": "topk", "k": 4}, normalize="layer_norm")
    autoencoder = SparseAutoencoder(settings, 8).eval()
    autoencoder.site = backbone.describe_site(backbone.site(2))
    readout, images = Readout(backbone, "head"), pictures()
    found = attribute(readout, autoencoder, images, torch.full((6,), 1))
    slow = [float(ablation_effect(readout, autoencoder, images, j, 1)) for j in range(12)]
    assert np.allclose(found, slow, atol=1e-5)
    assert max(map(abs, slow)) > 0.01


def test_attribution_approaches_small_ablations_of_a_nonlinear_model():
    backbone, autoencoder = model()
    readout, images = Readout(backbone, "head"), pictures()
    found = attribute(readout, autoencoder, images, torch.full((6,), 2))
    clean = readout(images)[1][:, 2]
    for latent in range(12):
        with intervene(backbone, autoencoder, {latent: 1 - 1e-2}):
            moved = float((readout(images)[1][:, 2] - clean).sum()) * 100
        assert float(found[latent]) == pytest.approx(moved, abs=2e-2)


def test_the_table_lists_the_latents_that_really_move_the_class_most():
    backbone, autoencoder = model(linear=True)
    readout, images = Readout(backbone, "head"), pictures()
    rows = class_effects(readout, autoencoder, lambda name: list(images.split(4)), {"x": 1}, latents=3, confirm=6)
    slow = np.array([float(ablation_effect(readout, autoencoder, images, j, 1)) / 6 for j in range(12)])
    readout_clean = readout(images)[0]
    assert [row["latent"] for row in rows] == np.argsort(-np.abs(slow))[:3].tolist()
    for row in rows:
        assert row["measured_logit"] == pytest.approx(slow[row["latent"]], abs=1e-5)
        assert row["attributed"] == pytest.approx(row["measured_logit"], abs=1e-5)
        with intervene(backbone, autoencoder, {row["latent"]: 0}):
            cosine = torch.cosine_similarity(readout(images)[0], readout_clean, dim=-1).mean()
        assert row["embedding_cosine"] == pytest.approx(float(cosine.detach()), abs=1e-6)
        assert row["attributed_there"] == pytest.approx(row["measured_logit"], abs=1e-5)


def test_a_site_with_one_vector_an_image_is_replaced_whole():
    """A module whose output is [images, d] counts as one token."""
    torch.manual_seed(0)
    backbone = wrap(Small(), ["rest"], "all", image_size=4)
    autoencoder = Relu()
    clean = backbone.output(pictures())
    with splice(backbone, autoencoder, error=True, site="rest"):
        assert torch.allclose(backbone.output(pictures()), clean, atol=1e-5)
    with splice(backbone, autoencoder, site="rest"):
        x = backbone.forward_to(pictures(), [backbone.site("rest")])[0][:, 0]
        assert torch.allclose(backbone.output(pictures()), backbone.model.head(x), atol=1e-5)
    assert not torch.allclose(x, backbone.forward_to(pictures(), [backbone.site("rest")])[0][:, 0], atol=1e-3)


# The whole stage on pictures: bright and dark ones, a randomly initialized transformers model.


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("effect")
    rng = np.random.default_rng(0)
    for kind, level in (("bright", 190), ("dark", 60)):
        (folder / "images" / kind).mkdir(parents=True)
        for i in range(40):
            pixels = np.clip(level + rng.normal(0, 25, (32, 32, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "images" / kind / f"{i:02d}.png")
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    ViTModel(ViTConfig(**sizes, image_size=32, patch_size=8)).save_pretrained(folder / "vit")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder / "vit")
    images = ImageSettings(source=str(folder / "images"))
    backbone = BackboneSettings(name=f"hf/{folder / 'vit'}", layers=[1], precision="fp32")
    store = cache(backbone, images, [1], folder / "store", settings=CacheSettings(dtype="float32"))
    settings = TypeAdapter(AutoencoderSettings).validate_python(
        {"kind": "sparse", "n_latents": 64, "initial_l0": 8, "penalty": {"kind": "l1", "weight": 0.05}}
    )
    training = TrainingSettings(tokens=20_000, lr=5e-3, batch_size=256, held_out=0.3)
    store = getattr(store, "artifact", store)
    return folder, store, train(store, settings, training, folder / "autoencoder"), backbone, open_source(images)


def test_the_stage_measures_the_effect_on_the_model(run):
    folder, store, autoencoder, backbone, source = run
    settings = EvaluationSettings(effect=True, baselines=False, bootstrap=100)
    artifact = run_stage(
        evaluation_stage(autoencoder, store, settings, backbone=backbone, source=source), folder / "evaluation"
    )
    found = json.loads(artifact.file("evaluation.json").read_text())["effect"]
    assert found["readout"] == "probe"
    assert found["probe_images"] + found["images"] <= 80
    conditions = found["conditions"]
    assert conditions["clean"]["accuracy"]["value"] == 1
    assert conditions["spliced_with_error"]["embedding_cosine"]["value"] == pytest.approx(1, abs=1e-6)
    spliced, zero = (conditions[name]["embedding_relative_error"]["value"] for name in ("spliced", "zero_ablation"))
    assert 0 < spliced < zero
    assert {row["class"] for row in found["latents"]} <= {"bright", "dark"}
    assert all(np.isfinite(row["measured_logit"]) for row in found["latents"])
    page = artifact.file("evaluation.md").read_text()
    assert "spliced with error" in page
    assert "recovered, against zero ablation" in page


def test_images_are_drawn_from_the_labeled_ones_and_too_few_are_named(run):
    _, store, autoencoder, backbone, source = run
    loaded = load_backbone(backbone)
    settings = EvaluationSettings(effect=True, baselines=False, effect_images=3, effect_latents=1, bootstrap=10)

    def subject(labeled: int) -> Subject:
        """Open the subject with only the last few held-out images labeled."""
        opened = Subject.open(autoencoder, store, settings, 0)
        names = np.array(opened.store.images["class"].to_pylist(), dtype=object)
        names[opened.held_out[: len(opened.held_out) - labeled]] = None
        place = opened.store.images.column_names.index("class")
        opened.store.images = opened.store.images.set_column(place, "class", [names.tolist()])
        return opened

    assert effect(subject(2), loaded, source)["images"] == 2
    assert effect(subject(0), loaded, source)["readout"] == "embedding"
    without = replace(subject(2), train=np.array([], dtype=np.int64))
    with pytest.raises(RequestError, match="every image is held out"):
        effect(without, loaded, source)


def test_a_class_without_training_images_is_left_out_and_named(run, capsys):
    _, store, autoencoder, backbone, source = run
    settings = EvaluationSettings(effect=True, baselines=False, effect_images=8, effect_latents=1, bootstrap=10)
    loaded, opened = load_backbone(backbone), Subject.open(autoencoder, store, settings, 0)
    names = np.array(opened.store.images["class"].to_pylist(), dtype=object)
    names[opened.held_out[:3]] = "rare"
    place = opened.store.images.column_names.index("class")
    opened.store.images = opened.store.images.set_column(place, "class", [names.tolist()])
    content = store.content | {"labels": [{"name": "class", "kind": "category", "classes": ["bright", "dark", "rare"]}]}
    opened.store.artifact.manifest["content"] = content
    found = effect(opened, loaded, source)
    assert (found["readout"], found["left_out"]) == ("probe", ["rare"])
    assert {row["class"] for row in found["latents"]} <= {"bright", "dark"}
    assert "1 of 3 classes have none of the 16 training images" in " ".join(capsys.readouterr().err.split())
    # Without two classes to tell apart, the embedding is measured.
    names[:] = "bright"
    opened.store.images = opened.store.images.set_column(place, "class", [names.tolist()])
    assert effect(opened, loaded, source)["readout"] == "embedding"


def test_changed_or_missing_pictures_and_unknown_labels_are_named(run, tmp_path):
    _, store, autoencoder, backbone, source = run
    settings = EvaluationSettings(effect=True, baselines=False, effect_label="color")
    with pytest.raises(RequestError, match="effect_label: 'color' is no category label"):
        run_stage(evaluation_stage(autoencoder, store, settings, backbone=backbone, source=source), tmp_path / "a")
    for kind in ("bright", "dark"):
        (tmp_path / "images" / kind).mkdir(parents=True)
        for i in range(40):
            Image.new("RGB", (32, 32), (i, 0, 0)).save(tmp_path / "images" / kind / f"{i:02d}.png")
    other = open_source(ImageSettings(source=str(tmp_path / "images")))
    settings = EvaluationSettings(effect=True, baselines=False)
    with pytest.raises(RequestError, match="content differs"):
        run_stage(evaluation_stage(autoencoder, store, settings, backbone=backbone, source=other), tmp_path / "b")
