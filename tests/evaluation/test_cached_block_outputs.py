"""Passes over the same images compute the layers before a change once, and say the same to the bit."""

import pytest
import torch
from torch import nn

from saetool.evaluation.cached_block_outputs import cached_block_outputs
from saetool.evaluation.interventions import ablate_site
from saetool.vision import load_backbone, wrap
from saetool.vision.settings import BackboneSettings


class Counted(nn.Module):
    """A residual layer that counts its passes."""

    def __init__(self, d=6):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(d, d), nn.Tanh())
        self.passes = 0

    def forward(self, x, scale=1.0):
        self.passes += 1
        return x + scale * self.mlp(x)


class Layers(nn.Module):
    """Patches of a 4 × 4 image through three layers, the last of them perhaps twice."""

    def __init__(self, shared=False, d=6):
        super().__init__()
        self.embed = nn.Conv2d(3, d, 2, stride=2)
        self.blocks = nn.ModuleList([Counted() for _ in range(3)])
        self.shared = shared
        self.in_place = False

    def forward(self, images):
        x = self.embed(images).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        if self.in_place:
            x.mul_(2)
        return self.blocks[2](x, scale=0.5).mean(1) if self.shared else x.mean(1)


def make(shared=False):
    torch.manual_seed(0)
    return wrap(Layers(shared), [2], image_size=4)


def passes(backbone):
    counts = [block.passes for block in backbone.model.blocks]
    for block in backbone.model.blocks:
        block.passes = 0
    return counts


@pytest.fixture
def images():
    return torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(3))


def test_layers_up_to_a_changed_site_run_once(images):
    backbone = make()
    clean = backbone.output(images)
    with ablate_site(backbone, 2):
        ablated = backbone.output(images)
    passes(backbone)
    with cached_block_outputs(backbone):
        assert torch.equal(backbone.output(images), clean)
        for _ in range(3):
            with ablate_site(backbone, 2):
                assert torch.equal(backbone.output(images), ablated)
        assert torch.equal(backbone.output(images), clean)
        assert passes(backbone) == [1, 1, 3]  # clean, ablated, clean: the last layer holds the latest
        other = backbone.output(images + 1)
        assert not torch.allclose(other, clean)
        assert passes(backbone) == [1, 1, 1]
    assert torch.equal(backbone.output(images + 1), other)
    assert passes(backbone) == [1, 1, 1]
    assert not any("forward" in block.__dict__ for block in backbone.model.blocks)


def test_a_change_inside_a_layer_is_seen(images):
    backbone = make()
    with ablate_site(backbone, "blocks.1.mlp"):
        ablated = backbone.output(images)
    with cached_block_outputs(backbone):
        clean = backbone.output(images)
        with ablate_site(backbone, "blocks.1.mlp"):
            assert torch.equal(backbone.output(images), ablated)
        assert torch.equal(backbone.output(images), clean)
    assert not torch.allclose(clean, ablated)


def test_a_layer_that_is_used_twice_and_outputs_written_to_are_computed_again(images):
    for backbone in (make(shared=True), make()):
        backbone.model.in_place = not backbone.model.shared
        clean = backbone.output(images)
        with ablate_site(backbone, 2):
            ablated = backbone.output(images)
        with cached_block_outputs(backbone):
            for _ in range(2):
                assert torch.equal(backbone.output(images), clean)
                with ablate_site(backbone, 2):
                    assert torch.equal(backbone.output(images), ablated)


def test_gradients_flow_as_without_and_errors_undo_it(images):
    backbone = make()

    def gradient():
        leaf = images.clone().requires_grad_()
        backbone.forward(leaf).square().sum().backward()
        return leaf.grad

    expected = gradient()
    with cached_block_outputs(backbone):
        backbone.output(images)
        assert torch.equal(gradient(), expected)
        backbone.output(images)
        assert torch.equal(gradient(), expected)
    with pytest.raises(RuntimeError), cached_block_outputs(backbone):
        backbone.output(images[:, :1])
    assert not any("forward" in block.__dict__ for block in backbone.model.blocks)


@pytest.mark.parametrize("library", ["timm", "transformers"])
def test_real_models_say_the_same_to_the_bit(tmp_path, library):
    name = "timm/test_vit" if library == "timm" else f"hf/{tmp_path}"
    if library == "transformers":
        from transformers import ViTConfig, ViTImageProcessor, ViTModel

        torch.manual_seed(0)
        sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48}
        ViTModel(ViTConfig(**sizes, image_size=32, patch_size=8)).save_pretrained(tmp_path)
        ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    settings = BackboneSettings(name=name, layers=[2], pretrained=library != "timm", precision="fp32")
    backbone = load_backbone(settings)
    height, width = backbone.transform.geometry.crop
    batch = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    clean = backbone.output(batch)
    with ablate_site(backbone, 2):
        ablated = backbone.output(batch)
    ran = []
    first = backbone.model.get_submodule(backbone.blocks[0])
    inside = next(module for module in first.modules() if isinstance(module, nn.Linear))
    compute = inside.forward
    inside.forward = lambda x: ran.append(1) or compute(x)
    with cached_block_outputs(backbone):
        assert torch.equal(backbone.output(batch), clean)
        for _ in range(2):
            with ablate_site(backbone, 2):
                assert torch.equal(backbone.output(batch), ablated)
    assert len(ran) == 1
    assert not torch.allclose(clean, ablated)
