"""Which token is which patch is proven by bright cells, or refused; rows that belong to no single image are refused."""

import pytest
import timm
import torch
from torch import nn

from saetool.errors import RequestError
from saetool.vision import wrap
from saetool.vision.backbone import Backbone
from saetool.vision.timm_models import parts_of, timm_transform

SMALLER = {
    "crossvit_9_240": {"depth": ((1, 1, 0),), "embed_dim": (32, 64), "num_heads": (2, 2), "mlp_ratio": (1, 1, 1)},
    "swin_tiny_patch4_window7_224": {"depths": (2, 2), "embed_dim": 24, "num_heads": (1, 2)},
    "coat_lite_tiny": {"serial_depths": (1, 1, 1, 1)},
    "tnt_s_patch16_224": {"depth": 2, "embed_dim": 48, "num_heads_outer": 2},
    "hiera_tiny_224": {"embed_dim": 24, "stages": (1, 1, 1, 1)},
    "maxvit_rmlp_pico_rw_256": {"depths": (1, 1, 1, 1), "embed_dim": (32, 32, 32, 32)},
}
"""Fewer and narrower blocks: what is asked of the layout stays, and random weights are drawn in no time."""


def timm_backbone(name, *layers, tokens="patches"):
    torch.manual_seed(0)
    model = timm.create_model(name, **SMALLER.get(name, {}))
    transform = timm_transform(model, None)
    return Backbone(parts_of(name, model, transform, "fp32", torch.device("cpu")), list(layers), tokens)


def brightest_cell(backbone, row, column):
    """Return the cell whose token changes most when (row, column) of the picture becomes bright."""
    height, width = backbone.transform.geometry.crop
    rows, columns = backbone.grid
    image = 0.1 * torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(5))
    bright = image.clone()
    top, left = row * height // rows, column * width // columns
    bright[..., top : top + height // rows, left : left + width // columns] += 2
    change = backbone.forward_to(bright)[0] - backbone.forward_to(image)[0]
    return divmod(int(change[0].float().norm(dim=-1).argmax()), columns)


LAYOUTS = [
    ("crossvit_9_240", "blocks.0", 1, (20, 20)),
    ("pit_ti_224", "transformers.0.blocks.0", 1, (27, 27)),
    ("mvitv2_tiny", "stages.0.blocks.0", 0, (56, 56)),
    ("pvt_v2_b0", "stages.0.blocks.0", 0, (56, 56)),
    ("coat_lite_tiny", "serial_blocks1.0", 1, (56, 56)),
    ("swin_tiny_patch4_window7_224", "layers.0.blocks.0", 0, (56, 56)),
    ("swin_tiny_patch4_window7_224", "layers.1.blocks.1", 0, (28, 28)),
    ("tnt_s_patch16_224", 2, 1, (14, 14)),
]


@pytest.mark.parametrize(("name", "layer", "prefix", "grid"), LAYOUTS)
def test_hierarchical_models_have_the_layout_of_the_site(name, layer, prefix, grid):
    backbone = timm_backbone(name, layer)
    assert (backbone.prefix_tokens, backbone.grid) == (prefix, grid)
    assert backbone.tokens_at(backbone.sites[0]) == grid[0] * grid[1]
    for cell in ((0, 0), (grid[0] // 2, grid[1] // 3), (grid[0] - 1, grid[1] - 2)):
        found = brightest_cell(backbone, *cell)
        # Patches of overlapping convolutions lie half a cell beside the picture's.
        assert max(abs(found[0] - cell[0]), abs(found[1] - cell[1])) <= 1


def test_tokens_in_another_order_are_refused():
    with pytest.raises(RequestError, match="do not answer bright cells"):
        timm_backbone("hiera_tiny_224", "blocks.0")
    assert timm_backbone("hiera_tiny_224", "blocks.0", tokens="all").sites[0].d == 24


NOT_IMAGES = [
    ("swin_tiny_patch4_window7_224", "layers.0.blocks.0.attn"),
    ("maxvit_rmlp_pico_rw_256", "stages.0.blocks.0.attn_block.attn"),
    ("mobilevit_xxs", "stages.2.1.transformer.0"),
    ("tnt_s_patch16_224", "blocks.1.mlp_in"),
]


@pytest.mark.parametrize(("name", "module"), NOT_IMAGES, ids=[case[0] for case in NOT_IMAGES])
def test_sites_whose_first_axis_is_not_the_images_are_refused(name, module):
    with pytest.raises(RequestError, match="first axis is not the images"):
        timm_backbone(name, module, tokens="all")


def test_a_map_that_answers_no_cells_is_refused():
    with pytest.raises(RequestError, match=r"not \[images, tokens, d\]"):
        timm_backbone("maxvit_rmlp_pico_rw_256", "stages.0.blocks.0", tokens="all")


class Embedded(nn.Module):
    """Patches of 4 × 4 pixels with `before` and `after` them tokens of their own; `kind` says what a block gives."""

    def __init__(self, kind="tokens", before=0, after=0):
        super().__init__()
        torch.manual_seed(0)
        self.kind, self.before = kind, before
        self.embed = nn.Conv2d(3, 8, 4, 4)
        self.extra = nn.Parameter(torch.randn(before + after, 8))
        self.tok = nn.Identity()

    def forward(self, images):
        patches = self.embed(images).flatten(2).transpose(1, 2)
        extra = self.extra.expand(len(images), -1, -1)
        tokens = torch.cat([extra[:, : self.before], patches, extra[:, self.before :]], 1)
        tokens = tokens + 0.1 * tokens.mean(1, keepdim=True)
        if self.kind == "sequence first":
            return self.tok(tokens.transpose(0, 1))
        if self.kind == "weights first":
            return self.tok((tokens @ tokens.transpose(1, 2), tokens))[1]
        if self.kind == "windows first":
            return self.tok((tokens.reshape(-1, 2, 8), tokens))[1]
        if self.kind == "positions":
            return self.tok(torch.ones_like(tokens))
        if self.kind == "mixed":
            return self.tok(tokens.flip(0))
        return self.tok(tokens)


@pytest.mark.parametrize("tokens", ["all", "patches"])
def test_a_sequence_first_module_is_refused(tokens):
    with pytest.raises(RequestError, match=r"\[16, 2, 8\] for two images and \[16, 1, 8\] for one"):
        wrap(Embedded("sequence first"), ["tok"], tokens, image_size=16)


def test_a_site_beside_blocks_that_are_refused_can_be_read():
    class Mixed(nn.Module):
        """Blocks that take tokens first, and a plain map of the same tokens after them."""

        def __init__(self):
            super().__init__()
            self.embed = nn.Conv2d(3, 8, 4, 4)
            self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))
            self.tok = nn.Identity()

        def forward(self, images):
            tokens = self.embed(images).flatten(2).permute(2, 0, 1)
            for block in self.blocks:
                tokens = block(tokens)
            return self.tok(tokens.transpose(0, 1))

    backbone = wrap(Mixed(), ["tok"], image_size=16)
    assert (backbone.grid, backbone.prefix_tokens) == ((4, 4), 0)
    with pytest.raises(RequestError, match="first axis is not the images"):
        backbone.site(1)


def test_a_model_without_numbered_layers_says_what_there_is():
    with pytest.raises(RequestError, match=r"no numbered layers: .* such as crpe1\.conv_list\.0 to "):
        timm_backbone("coat_lite_tiny", 1)


def test_a_size_that_does_not_suit_ends_in_a_sentence():
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2, embed_dim=24, num_heads=2)
    with pytest.raises(RequestError, match=r"cannot look at pictures of 80×80 pixels \(Input height"):
        wrap(model, [1], image_size=80)


def test_the_second_layer_of_tnt_is_the_librarys_own():
    backbone = timm_backbone("tnt_s_patch16_224", 2)
    images = torch.randn(3, 3, 224, 224)
    with torch.no_grad():
        own = backbone.model.forward_intermediates(images, indices=[1], intermediates_only=True)[0]
    torch.testing.assert_close(backbone.forward_to(images)[0], own.flatten(2).transpose(1, 2))


@pytest.mark.parametrize("kind", ["mixed", "positions"])
def test_what_is_not_an_images_own_is_refused(kind):
    with pytest.raises(RequestError, match="nothing of an image's own"):
        wrap(Embedded(kind), ["tok"], "all", image_size=16)


@pytest.mark.parametrize("kind", ["weights first", "windows first"])
def test_of_a_tuple_the_tokens_are_taken_and_put_back(kind):
    module = Embedded(kind)
    backbone = wrap(module, ["tok"], image_size=16)
    images = torch.randn(3, 3, 16, 16)
    torch.testing.assert_close(backbone.forward_to(images)[0], module(images))
    with backbone.replacing(backbone.sites[0], lambda tokens: tokens * 2):
        doubled = module(images)
    torch.testing.assert_close(doubled, module(images) * 2)


@pytest.mark.parametrize(("before", "after"), [(0, 0), (1, 0), (0, 3), (2, 4), (1, 100)])
def test_registers_behind_the_patches_are_no_prefix(before, after):
    module = Embedded(before=before, after=after)
    backbone = wrap(module, ["tok"], image_size=32)
    assert (backbone.prefix_tokens, backbone.grid) == (before, (8, 8))
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(backbone.forward_to(images)[0], module(images)[:, before : before + 64])
    with backbone.replacing(backbone.sites[0], lambda tokens: tokens * 0):
        changed = module(images)
    assert changed[:, before : before + 64].abs().max() == 0
    torch.testing.assert_close(changed[:, before + 64 :], module(images)[:, before + 64 :])


def test_a_callers_grid_is_believed():
    backbone = wrap(Embedded(), ["tok"], image_size=32, grid=(4, 16))
    assert (backbone.prefix_tokens, backbone.grid) == (0, (4, 16))
    assert backbone.forward_to(torch.randn(1, 3, 32, 32))[0].shape == (1, 64, 8)


def test_two_grids_do_not_fit_into_one_store():
    with pytest.raises(
        RequestError, match=r"a 28×28 grid at layers\.1\.blocks\.0, where the other sites have .* 56×56"
    ):
        timm_backbone("swin_tiny_patch4_window7_224", "layers.0.blocks.0", "layers.1.blocks.0")
