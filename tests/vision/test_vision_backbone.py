"""Sites, token selection, stopping early, splicing, identity, what is refused."""

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from saetool.errors import RequestError, WorkError
from saetool.vision import BackboneSettings, load_backbone, wrap
from saetool.vision.weights import fill

TINY = "timm/test_vit"


@pytest.fixture(scope="module")
def tiny():
    return load_backbone(BackboneSettings(name=TINY, layers=[2, 5], tokens="all", pretrained=False, precision="fp32"))


@pytest.fixture
def images():
    return torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(3))


def load(**fields):
    return load_backbone(BackboneSettings(**{"name": TINY, "pretrained": False, "precision": "fp32", **fields}))


def test_layers_keep_the_order_they_were_asked_in():
    backbone = load(layers=[5, 1, "blocks.*.attn", "blocks.2"])
    assert [site.module for site in backbone.sites][:2] == ["blocks.4", "blocks.0"]
    assert [site.module for site in backbone.sites][2:8] == [f"blocks.{i}.attn" for i in range(6)]
    assert backbone.sites[-1].layer == 3
    assert backbone.site(5).folder == "layer-05"
    assert backbone.site(5).label == "layer 5 (blocks.4)"
    assert backbone.site("blocks.1.mlp").folder == backbone.site("blocks.1.mlp").label == "blocks.1.mlp"


def test_a_site_named_twice_is_one_site():
    backbone = load(layers=[3, "blocks.2", 3, "blocks.*"])
    assert [site.folder for site in backbone.sites] == [f"layer-{n:02d}" for n in (3, 1, 2, 4, 5, 6)]


def test_sites_come_back_in_the_order_asked_and_match_one_by_one(tiny, images):
    both = tiny.forward_to(images, [tiny.site(5), tiny.site(2)])
    torch.testing.assert_close(both[0], tiny.forward_to(images, [tiny.site(5)])[0], rtol=0, atol=0)
    torch.testing.assert_close(both[1], tiny.forward_to(images, [tiny.site(2)])[0], rtol=0, atol=0)
    assert not torch.equal(both[0], both[1])


def test_selections_are_parts_of_all_tokens(tiny, images):
    whole = tiny.forward_to(images, [tiny.site(2)])[0]
    parts = {kind: load(layers=[2], tokens=kind).forward_to(images)[0] for kind in ("patches", "cls", "mean")}
    torch.testing.assert_close(parts["patches"], whole[:, 1:], rtol=0, atol=0)
    torch.testing.assert_close(parts["cls"], whole[:, :1], rtol=0, atol=0)
    torch.testing.assert_close(parts["mean"], whole[:, 1:].mean(1, keepdim=True))
    for kind, tokens in parts.items():
        backbone = load(layers=[2], tokens=kind)
        assert backbone.tokens_at(backbone.sites[0]) == tokens.shape[1]


def test_the_pass_stops_after_the_deepest_site_and_hooks_come_off(tiny, images):
    sites, ran = [tiny.site(4), tiny.site(2)], []
    handles = [block.register_forward_hook(lambda *_, i=i: ran.append(i)) for i, block in enumerate(tiny.model.blocks)]
    tiny.forward_to(images, sites)
    for handle in handles:
        handle.remove()
    assert ran == [0, 1, 2, 3]
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in tiny.model.modules())


def test_replacing_changes_only_selected_tokens_and_comes_off(images):
    backbone = load(layers=[3], tokens="patches")
    site = backbone.sites[0]
    before = backbone.output(images)
    with backbone.replacing(site, lambda tokens: tokens):
        torch.testing.assert_close(backbone.output(images), before, rtol=0, atol=0)
    seen = {}
    with backbone.replacing(site, lambda tokens: torch.zeros_like(tokens)):
        handle = backbone.model.blocks[3].register_forward_pre_hook(lambda _, inputs: seen.update(x=inputs[0]))
        assert not torch.allclose(backbone.output(images), before)
        handle.remove()
    assert seen["x"][:, 1:].abs().max() == 0
    assert seen["x"][:, 0].abs().max() > 0
    torch.testing.assert_close(backbone.output(images), before, rtol=0, atol=0)


def test_random_weights_come_from_the_seed():
    settings = BackboneSettings(name=TINY, layers=[1], pretrained=False, precision="fp32")
    state = torch.random.get_rng_state()
    digests = [load_backbone(settings, seed=seed).weights_digest for seed in (0, 0, 1)]
    assert digests[0] == digests[1] != digests[2]
    assert torch.equal(torch.random.get_rng_state(), state)


def test_identity_is_weights_place_tokens_and_preprocessing():
    backbone = load(layers=[3])
    digest = backbone.describe_site(backbone.site(3))["digest"]
    assert backbone.describe_site(backbone.site("blocks.2"))["digest"] == digest
    assert load(layers=[3], precision="bf16").describe_site(backbone.site(3))["digest"] == digest
    assert backbone.describe_site(backbone.site(2))["digest"] != digest
    assert load(layers=[3], tokens="all").describe_site(backbone.site(3))["digest"] != digest
    assert load(layers=[3], image_size=192).describe_site(backbone.site(3))["digest"] != digest


def test_bf16_weights_agree_with_fp32_to_a_few_percent(tiny, images):
    half = load(layers=[2, 5], tokens="all", precision="bf16")
    for low, high in zip(half.forward_to(images), tiny.forward_to(images), strict=True):
        assert low.dtype == torch.bfloat16
        assert ((low.float() - high).norm() / high.norm()) < 0.03


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_local_weights_replace_the_published_ones(suffix, tmp_path, images):
    torch.manual_seed(5)
    model = timm.create_model("test_vit").eval()
    file = tmp_path / f"weights.{suffix}"
    if suffix == "pt":
        torch.save({"state_dict": {f"module.{name}": value for name, value in model.state_dict().items()}}, file)
    else:
        save_file(model.state_dict(), file)
    backbone = load(weights=str(file), layers=[6], tokens="all", pretrained=True)
    with torch.no_grad():
        torch.testing.assert_close(backbone.output(images), model(images))


def test_weights_of_another_model_and_pickled_code_are_refused(tmp_path):
    save_file(timm.create_model("test_vit2").state_dict(), tmp_path / "other.safetensors")
    with pytest.raises(RequestError, match=r"other\.safetensors"):
        load(weights=str(tmp_path / "other.safetensors"), layers=[1])
    torch.save(nn.Linear(2, 2), tmp_path / "code.pt")
    with pytest.raises(WorkError, match=r"code\.pt holds no weights"):
        load(weights=str(tmp_path / "code.pt"), layers=[1])
    with pytest.raises(RequestError, match="no file"):
        load(weights=str(tmp_path / "none.pt"), layers=[1])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.ones(2)], "holds a list without tensors by name"),
        ({0: torch.ones(2), 1: torch.ones(3)}, "holds a dict without tensors by name"),
        ({"state_dict": [torch.ones(2)]}, "holds a dict without tensors by name"),
        ({"epoch": 3}, "holds a dict without tensors by name"),
    ],
)
def test_files_that_hold_no_weights_by_name_are_refused(content, message, tmp_path):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(RequestError, match=message):
        load(weights=str(tmp_path / "w.pt"), layers=[1])


def test_only_another_input_size_is_called_that(tmp_path):
    save_file(timm.create_model("test_vit", embed_dim=32).state_dict(), tmp_path / "narrow.safetensors")
    with pytest.raises(RequestError, match="they are another model's weights"):
        load(weights=str(tmp_path / "narrow.safetensors"), layers=[1])
    with pytest.raises(RequestError, match=r"'pos_embed' has shape .* check image_size"):
        fill(timm.create_model("test_vit"), timm.create_model("test_vit", img_size=96).state_dict(), "small.pt")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layers": [7]}, "layers 1 to 6; layer 7"),
        ({"layers": ["blocks.9"]}, r"no module 'blocks\.9'; its blocks are blocks\.0 to blocks\.5"),
        ({"layers": [1, "head"]}, "one vector an image"),
        ({"layers": ["blocks.0.attn.q_norm"]}, "not \\[images, tokens, d\\]"),
        ({"name": "timm/test_vitt", "layers": [1]}, "near it: test_vit"),
        ({"name": "test_vit", "layers": [1]}, "did you mean timm/test_vit"),
        ({"name": "pixels", "layers": [1], "image_size": None}, "image_size"),
    ],
)
def test_wrong_requests_name_what_there_is(fields, message):
    with pytest.raises(RequestError, match=message):
        load(**fields)


@pytest.mark.parametrize("classes", [0, 7])
def test_weights_bring_their_own_classifier(classes, tmp_path, images):
    model = timm.create_model("test_vit", num_classes=classes).eval()
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    backbone = load(weights=str(tmp_path / "w.safetensors"), layers=[6])
    with torch.no_grad():
        torch.testing.assert_close(backbone.output(images), model(images))


def test_a_model_without_cls_gives_none():
    module = timm.create_model("vit_base_patch16_siglip_224", img_size=64, depth=2, embed_dim=48, num_heads=2)
    with pytest.raises(RequestError, match="no CLS token: use tokens: patches"):
        wrap(module, [1], "cls", image_size=64)


def test_layers_count_from_one():
    with pytest.raises(ValueError, match="layers count from 1"):
        BackboneSettings(layers=[0])


def test_pooled_modules_give_one_token_an_image(images):
    backbone = load(layers=["fc_norm", "head"], tokens="all")
    assert [tuple(tokens.shape) for tokens in backbone.forward_to(images)] == [(2, 1, 64), (2, 1, 1000)]


@pytest.mark.parametrize(("name", "channels"), [("pixels", 3), ("pixels/gray", 1)])
def test_pixels_are_values_between_zero_and_one(name, channels):
    from saetool.images import Sample
    from saetool.images.arrays import digits

    picture = digits(Sample(first=3)).read(1)
    backbone = load(name=name, layers=[1], image_size=8, tokens="patches")
    row = backbone.forward_to(backbone.transform(picture.image)[None])[0]
    assert row.shape == (1, 1, channels * 64)
    expected = torch.tensor(list(picture.image.convert("L").tobytes())).float() / 255
    torch.testing.assert_close(row[0, 0, :64], expected)
    assert backbone.sites[0].d == channels * 64


class Block(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.linear = nn.Linear(d, d)

    def forward(self, x):
        return (x + self.linear(x), "attention weights would be here")


class Homemade(nn.Module):
    """Linear patch embedding, a register behind a CLS token, blocks that give tuples."""

    def __init__(self, d=16, patch=4):
        super().__init__()
        self.patch = patch
        self.embed = nn.Linear(3 * patch * patch, d)
        self.cls_token = nn.Parameter(torch.randn(1, 2, d))
        self.stages = nn.ModuleList(Block(d) for _ in range(3))

    def forward(self, images):
        patches = nn.functional.unfold(images, self.patch, stride=self.patch).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(images), -1, -1), self.embed(patches)], dim=1)
        for block in self.stages:
            x, _ = block(x)
        return x


def test_any_module_can_be_wrapped():
    module = Homemade()
    backbone = wrap(module, [2], image_size=(8, 16), grid=(2, 4), prefix_tokens=2)
    assert (backbone.n_layers, backbone.grid, backbone.prefix_tokens) == (3, (2, 4), 2)
    images = torch.randn(2, 3, 8, 16)
    tokens = backbone.forward_to(images)[0]
    assert tokens.shape == (2, 8, 16)
    with backbone.replacing(backbone.sites[0], lambda x: x * 0):
        changed = module(images)
    assert torch.allclose(changed[:, :2], module(images)[:, :2])
    assert not torch.allclose(changed[:, 2:], module(images)[:, 2:])


def test_a_callers_grid_must_have_as_many_tokens_as_the_module():
    with pytest.raises(RequestError, match="declares 1 prefix tokens and a 2×4 grid, which makes 9 tokens"):
        wrap(Homemade(), [2], image_size=(8, 16), grid=(2, 4), prefix_tokens=1)


def test_a_grid_nobody_named_is_found_by_bright_cells():
    backbone = wrap(Homemade(), [2], image_size=(8, 16))
    assert (backbone.grid, backbone.prefix_tokens) == ((2, 4), 2)


def test_channels_last_grids_are_rows_of_patches():
    class Windowed(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Conv2d(3, 8, 4, 4)
            self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))

        def forward(self, images):
            x = self.embed(images).permute(0, 2, 3, 1)
            for block in self.blocks:
                x = block(x)
            return x

    module = Windowed()
    backbone = wrap(module, [2], image_size=(8, 12))
    images = torch.randn(2, 3, 8, 12)
    assert backbone.grid == (2, 3)
    torch.testing.assert_close(backbone.forward_to(images)[0], module(images).flatten(1, 2))
    with backbone.replacing(backbone.sites[0], lambda tokens: tokens * torch.arange(6)[:, None]):
        changed = module(images)
    torch.testing.assert_close(changed[:, 1, 2], module(images)[:, 1, 2] * 5)


def test_a_site_of_a_twin_can_be_read(tiny, images):
    twin = load(layers=[1], tokens="all")
    torch.testing.assert_close(twin.forward_to(images, tiny.sites), tiny.forward_to(images), rtol=0, atol=0)
    twin = load(layers=[1], tokens="all")
    assert twin.tokens_at(tiny.sites[0]) == 101
    twin = load(layers=[1], tokens="all")
    with twin.replacing(tiny.sites[0], lambda tokens: tokens * 0):
        assert not torch.allclose(twin.output(images), tiny.output(images))


def test_gradients_reach_what_replaces_a_site(tiny, images):
    leaves = []

    def leaf(tokens):
        leaves.append(tokens.detach().requires_grad_())
        return leaves[-1]

    with tiny.replacing(tiny.site(2), leaf):
        tiny.forward(images).sum().backward()
    assert leaves[0].grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in tiny.model.parameters())


def test_two_threads_read_one_model_without_disturbing_each_other():
    from concurrent.futures import ThreadPoolExecutor

    torch.manual_seed(0)
    blocks = torch.nn.Sequential(*(torch.nn.Linear(8, 8) for _ in range(6)))
    backbone = wrap(blocks, ["0", "5"], "all", run=lambda images: blocks(images.flatten(2)), image_size=(2, 4))
    images = torch.randn(3, 3, 2, 4)
    expected = [backbone.forward_to(images, [site])[0] for site in backbone.sites]
    with ThreadPoolExecutor(2) as pool:
        many = list(pool.map(lambda i: backbone.forward_to(images, [backbone.sites[i % 2]])[0], range(400)))
    assert all(torch.equal(found, expected[i % 2]) for i, found in enumerate(many))


def test_a_backbone_is_named_by_a_string():
    with pytest.raises(RequestError, match=r"'nonsense' is none of timm/NAME"):
        load_backbone("nonsense")
