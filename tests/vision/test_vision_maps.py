"""Convolutional maps and vectors are tokens; stages are layers; heads and inputs have paths."""

import dataclasses

import pytest
import timm
import torch
from torch import nn

from saetool.errors import RequestError
from saetool.evaluation.readout import Readout, find_head
from saetool.vision import BackboneSettings, load_backbone, reading, replacing, wrap


def load(name, *layers, **fields):
    settings = {"layers": list(layers), "pretrained": False, "precision": "fp32"}
    return load_backbone(BackboneSettings(name=name, **settings, **fields))


class Maps(nn.Module):
    """A convolution of 8 × 8 pixels that gives its map with the channels first or last, and a vector after it."""

    def __init__(self, d, last=False):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.last = nn.Conv2d(3, d, 8, 8), last
        self.map, self.pooled = nn.Identity(), nn.Linear(d, 5)

    def forward(self, images):
        found = self.conv(images)
        found = self.map(found.permute(0, 2, 3, 1) if self.last else found)
        return self.pooled(found.mean((1, 2) if self.last else (2, 3)))


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("d", [4, 6], ids=["as wide as the grid", "another width"])
def test_a_map_is_read_as_tokens_on_its_grid_wherever_its_channels_stand(d, last):
    model = Maps(d, last)
    backbone = wrap(model, ["map"], image_size=32)
    assert (backbone.grid, backbone.prefix_tokens, backbone.sites[0].d) == ((4, 4), 0, d)
    images = torch.randn(2, 3, 32, 32)
    tokens = backbone.forward_to(images)[0]
    for row in range(4):
        for column in range(4):
            pixels = images[:, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
            torch.testing.assert_close(tokens[:, 4 * row + column], model.conv(pixels)[..., 0, 0])


@pytest.mark.parametrize("last", [False, True])
def test_a_map_is_put_back_as_it_was_read(last):
    model = Maps(6, last)
    backbone = wrap(model, ["map"], image_size=32)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad(), backbone.replacing(backbone.sites[0], lambda tokens: tokens):
        torch.testing.assert_close(model(images), backbone.output(images))
    bright = torch.zeros(2, 16, 6)
    bright[:, 7, 2] = 16
    with backbone.replacing(backbone.sites[0], lambda tokens: bright):
        torch.testing.assert_close(model(images)[0], (model.pooled.weight[:, 2] + model.pooled.bias))
    with backbone.replacing(backbone.sites[0], lambda tokens: bright), reading(model, ["map"]) as mapped:
        model(images)
    shown = mapped["map"] if last else mapped["map"].permute(0, 2, 3, 1)
    assert shown.nonzero().tolist() == [[0, 1, 3, 2], [1, 1, 3, 2]]


def test_a_given_grid_is_taken_at_its_word_and_checked_against_the_shape_only():
    class Mixed(Maps):
        """A map that answers no picture's cells: all of its places see all of the picture."""

        def forward(self, images):
            vector = self.conv(images).mean((2, 3))
            return self.map(vector[:, :, None, None] * torch.arange(12.0).reshape(3, 4))

    with pytest.raises(RequestError, match=r"not \[images, tokens, d\]"):
        wrap(Mixed(6), ["map"], image_size=32)
    backbone = wrap(Mixed(6), ["map"], image_size=32, grid=(3, 4))
    assert (backbone.grid, backbone.sites[0].d) == ((3, 4), 6)
    with pytest.raises(RequestError, match=r"a 2×4 grid, which makes 8 tokens, but 'map' gives"):
        wrap(Mixed(6), ["map"], image_size=32, grid=(2, 4))


def test_given_prefix_tokens_are_taken_at_their_word():
    torch.manual_seed(0)
    model = timm.create_model("test_vit")
    told = wrap(model, [2], image_size=160, grid=(4, 25), prefix_tokens=1)
    assert (told.grid, told.tokens_at(told.sites[0])) == ((4, 25), 100)
    with pytest.raises(RequestError, match=r"makes 100 tokens, but 'blocks\.0' gives 101"):
        wrap(model, [2], image_size=160, grid=(4, 25))


def test_one_vector_an_image_is_one_token():
    model = Maps(6)
    backbone = wrap(model, ["pooled"], image_size=32)
    images = torch.randn(2, 3, 32, 32)
    assert (backbone.grid, backbone.tokens_at(backbone.sites[0])) == (None, 1)
    with torch.no_grad():
        torch.testing.assert_close(backbone.forward_to(images)[0], model(images)[:, None])


@pytest.mark.parametrize(
    ("name", "layer", "module", "grid"),
    [
        ("timm/test_resnet", 2, "layer2", (20, 20)),
        ("timm/test_convnext", 3, "stages.2", (10, 10)),
        pytest.param("timm/resnet50", 4, "layer4", (7, 7), marks=pytest.mark.slow),
        pytest.param("timm/swin_tiny_patch4_window7_224", 2, "layers.1", (28, 28), marks=pytest.mark.slow),
        pytest.param("timm/convnext_tiny", 1, "stages.0", (56, 56), marks=pytest.mark.slow),
    ],
)
def test_stages_of_a_hierarchy_are_its_layers(name, layer, module, grid):
    backbone = load(name, layer)
    assert (backbone.n_layers, backbone.sites[0].module, backbone.grid) == (4, module, grid)
    images = torch.randn(2, 3, *backbone.transform.geometry.crop)
    tokens = backbone.forward_to(images)[0]
    stages = backbone.model.forward_intermediates(images, indices=4, intermediates_only=True)
    expected = next(stage for stage in stages if stage.shape[2:] == grid)
    torch.testing.assert_close(tokens, expected.flatten(2).transpose(1, 2))


def test_heads_add_up_to_what_their_attention_gives():
    backbone = load("timm/test_vit", "blocks.2.attn.heads.*")
    assert [site.module for site in backbone.sites] == ["blocks.2.attn.heads.0", "blocks.2.attn.heads.1"]
    images = torch.randn(2, 3, 160, 160)
    heads = backbone.forward_to(images)
    assert [head.shape for head in heads] == [(2, 100, 32)] * 2
    attention = backbone.model.blocks[2].attn
    whole = backbone.forward_to(images, backbone.sites_of(["blocks.2.attn", "blocks.2.attn.heads"]))
    torch.testing.assert_close(torch.cat(heads, -1), whole[1])
    torch.testing.assert_close(attention.proj(whole[1]), whole[0])


def test_a_head_that_is_taken_out_changes_what_its_columns_of_the_projection_would():
    model = timm.create_model("test_vit").eval()
    x = torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        with replacing(model, "blocks.2.attn.heads.1", torch.zeros_like):
            without = model(x)
        model.blocks[2].attn.proj.weight[:, 32:] = 0
        torch.testing.assert_close(without, model(x))


def test_neurons_are_what_goes_into_the_second_map_of_an_mlp():
    backbone = load("timm/test_vit", "blocks.1.mlp.act", "blocks.1.mlp.fc2.input", "blocks.1.mlp.fc1")
    neurons, inputs, before = backbone.forward_to(torch.randn(1, 3, 160, 160))
    torch.testing.assert_close(inputs, neurons, rtol=0, atol=0)
    torch.testing.assert_close(nn.functional.gelu(before), neurons)


def test_heads_that_cannot_be_told_are_refused_with_the_way_out():
    backbone = load("timm/test_vit", 1)
    with pytest.raises(RequestError, match=r"has heads 0 to 1; 'blocks\.0\.attn\.heads\.2'"):
        backbone.site("blocks.0.attn.heads.2")
    with pytest.raises(RequestError, match=r"'blocks\.0\.mlp' \(Mlp\) does not show its heads: .* PATH\.input"):
        backbone.site("blocks.0.mlp.heads")
    with pytest.raises(RequestError, match=r"no module 'blocks\.9\.attn\.heads'"):
        backbone.site("blocks.9.attn.heads")


def test_random_weights_keep_the_classification_head_that_was_published(tmp_path):
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    model = ViTForImageClassification(ViTConfig(**sizes, image_size=32, patch_size=8, num_labels=5)).eval()
    model.save_pretrained(tmp_path)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        published = load_backbone(BackboneSettings(name=f"hf/{tmp_path}", layers=[1], precision="fp32"))
        torch.testing.assert_close(published.output(images), model(images).logits)
        assert load(f"hf/{tmp_path}", 1).output(images).shape == (2, 5)


def test_convolutional_models_of_transformers_keep_their_head(tmp_path):
    from transformers import ConvNextImageProcessor, ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(depths=[1, 1], hidden_sizes=[16, 32], embedding_size=8, num_labels=5)
    model = ResNetForImageClassification(config).eval()
    model.save_pretrained(tmp_path)
    ConvNextImageProcessor(size={"height": 32, "width": 32}, do_resize=True).save_pretrained(tmp_path)
    backbone = load_backbone(BackboneSettings(name=f"hf/{tmp_path}", layers=[2], precision="fp32"))
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(backbone.output(images), model(images).logits)
        assert find_head(backbone, 5) == "classifier.1"
        torch.testing.assert_close(Readout(backbone, "classifier.1")(images)[1], model(images).logits)
        plain = load("hf/resnet", 1, image_size=32)
        assert plain.output(images).shape == (2, 2048)


def test_the_readout_finds_the_head_of_a_hierarchy():
    backbone = load("timm/test_convnext", 1)
    assert find_head(backbone, 1000) == "head.fc"
    images = torch.randn(2, 3, 160, 160)
    embedding, logits = Readout(backbone, "head.fc")(images)
    torch.testing.assert_close(backbone.model.head.fc(embedding), logits)


class Attention(nn.Module):
    num_heads = 2

    def __init__(self, d):
        super().__init__()
        self.proj = nn.Linear(d, d)

    def forward(self, h):
        return self.proj(h)


class Widening(nn.Module):
    """A block with a projection of its own, to another width, beside the attention in it."""

    def __init__(self, d):
        super().__init__()
        self.attn, self.proj = Attention(d), nn.Linear(d, d)

    def forward(self, h):
        return self.proj(h) + self.attn(h)


class Seeing(nn.Module):
    """Sixteen patches of width `d`; its blocks give (weights, tokens), or tokens alone."""

    def __init__(self, d, block=None):
        super().__init__()
        self.embed, self.b = nn.Conv2d(3, d, 4, 4), nn.ModuleList([block or nn.Identity()])
        self.weights = block is None

    def forward(self, pictures):
        h = self.embed(pictures).flatten(2).transpose(1, 2)
        for block in self.b:
            h = block((torch.softmax(h @ h.mT, -1), h))[1] if self.weights else block(h)
        return h.mean(1)


def test_a_projection_of_the_block_itself_is_not_its_attentions():
    model = Seeing(8, Widening(8))
    with pytest.raises(RequestError, match="does not show its heads"):
        wrap(model, ["b.0.heads"], image_size=16)
    assert wrap(model, ["b.0.attn.heads"], image_size=16).forward_to(torch.rand(1, 3, 16, 16))[0].shape == (1, 16, 8)


def test_tokens_that_cannot_be_told_from_attention_weights_are_refused():
    assert wrap(Seeing(24), ["b.0"], image_size=16).forward_to(torch.rand(1, 3, 16, 16))[0].shape == (1, 16, 24)
    with pytest.raises(RequestError, match=r"2 outputs of shape \[16, 16\], of which one may be attention weights"):
        wrap(Seeing(16), ["b.0"], image_size=16)


@pytest.mark.parametrize(("dtype", "name"), [(torch.float16, "fp16"), (torch.float64, "fp64"), (torch.float32, "fp32")])
def test_the_precision_is_that_of_the_module(dtype, name):
    assert wrap(Seeing(8, Widening(8)).to(dtype), ["b.0"], image_size=16).describe()["precision"] == name


def test_a_site_of_other_tokens_is_replaced_at_those():
    backbone = load("timm/test_vit", 2)
    site = dataclasses.replace(backbone.site(2), tokens="cls")
    seen = []
    with backbone.replacing(site, lambda tokens: seen.append(tokens.shape) or tokens):
        backbone.output(torch.randn(3, 3, 160, 160))
    assert seen == [(3, 1, 64)]
