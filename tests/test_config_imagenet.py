"""What the ImageNet configs promise happens: layer 11 of ViT-B/16, 196 patches of width 768, 32 times the latents."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from saetool.activations import ActivationStore
from saetool.autoencoders.families import build
from saetool.config import load_config
from saetool.images import open_source
from saetool.pipeline import Run
from saetool.vision import load_backbone

CONFIGS = ["vit_b16_clip_imagenet", "vit_b16_clip_imagenet_kl"]


@pytest.mark.slow
def test_layer_tokens_and_widths_are_as_promised(tmp_path):
    for i, name in enumerate(["cats/1.jpg", "dogs/2.png", "cats/3.jpg", "dogs/4.png", "dogs/5.png"]):
        pixels = np.random.default_rng(i).integers(0, 256, (200, 260 - 20 * i, 3), dtype=np.uint8)
        (tmp_path / "pictures" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "pictures" / name)
    images = f"images={json.dumps({'source': str(tmp_path / 'pictures')})}"
    made = ["backbone.pretrained=false", "backbone.precision=fp32", "cache.batch_size=2", "cache.dtype=float32"]
    first, second = (load_config(name, [images, *made]) for name in CONFIGS)
    assert (first.backbone, first.images, first.cache) == (second.backbone, second.images, second.cache)

    run = Run.load(CONFIGS[0], [f"run={tmp_path / 'run'}", images, *made])
    estimate = run.estimate("activations")
    assert estimate["bytes_on_disk"] == 5 * 196 * 768 * 4
    run.make("activations")
    store = ActivationStore.open(tmp_path / "run/activations")
    site = store.site(11)
    assert site.info["label"] == "layer 11 (blocks.10)"
    assert (store.n_images, site.tokens, site.d, site.grid) == (5, 196, 768, [14, 14])
    assert [label["classes"] for label in store.artifact.content["labels"]] == [["cats", "dogs"]]

    backbone = load_backbone(first.backbone, first.seed, "cpu")
    source = open_source(first.images)
    batch = torch.stack([backbone.transform(source.read(i).image) for i in range(5)])
    with torch.no_grad():
        expected = backbone.model.forward_intermediates(batch, indices=[10], output_fmt="NLC", intermediates_only=True)
    torch.testing.assert_close(site.rows(0, 5), expected[0], rtol=1e-4, atol=1e-4)

    for config in (first, second):
        model = build(config.autoencoder, site.d)
        assert (model.d_in, model.n_latents) == (768, 24_576)
