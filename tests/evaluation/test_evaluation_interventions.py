"""Changing latents does exactly what linear algebra says, on toy, timm and transformers models; hooks come off."""

import pytest
import torch
from pydantic import TypeAdapter
from torch import nn

from saetool.activations import TensorStream
from saetool.autoencoders.base import Autoencoder, Normalizer, Statistics
from saetool.autoencoders.families import AutoencoderSettings, build
from saetool.errors import RequestError
from saetool.evaluation.interventions import Delta, Scale, Value, ablate_site, intervene, splice
from saetool.vision import load_backbone, wrap
from saetool.vision.settings import BackboneSettings


class Last(nn.Module):
    """Patches of a 4 × 4 image, two blocks, a linear head on the mean token: nothing else after the last block."""

    def __init__(self, d=6, classes=3):
        super().__init__()
        self.embed = nn.Conv2d(3, d, 2, stride=2)
        self.blocks = nn.ModuleList(
            [nn.Sequential(nn.Linear(d, d), nn.Tanh()), nn.Sequential(nn.Linear(d, d), nn.Tanh())]
        )
        self.head = nn.Linear(d, classes)

    def forward(self, images):
        x = self.embed(images).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


class Relu(Autoencoder):
    """A ReLU autoencoder with normalization, so that directions in raw units differ from the weights."""

    def __init__(self, d=6, n_latents=10, seed=0, linear=True):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.d_in, self.n_latents, self.linear = d, n_latents, linear
        self.normalizer = Normalizer(d, "center_scale")
        self.normalizer.fit(Statistics(10, torch.linspace(-0.2, 0.3, d).double(), torch.full((d,), 0.04).double()))
        self.encoder = nn.Parameter(torch.randn(n_latents, d, generator=generator))
        self.decoder = nn.Parameter(torch.randn(n_latents, d, generator=generator) / 3)

    def encode(self, x):
        return torch.relu(self.normalizer(x) @ self.encoder.T)

    def decode(self, z):
        out = z @ self.decoder
        return self.normalizer.inverse(out if self.linear else torch.tanh(out))

    def decoder_directions(self):
        return (self.decoder / self.normalizer.factor).detach() if self.linear else None


@pytest.fixture
def images():
    return torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def backbone():
    torch.manual_seed(0)
    return wrap(Last(), [2], image_size=4)


def hooks_of(backbone):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in backbone.model.modules())


def site_values(backbone, autoencoder, images):
    x = backbone.forward_to(images, [backbone.site(2)])[0]
    return x, autoencoder.encode(x.flatten(0, 1)).view(*x.shape[:2], -1)


def test_ablating_before_a_linear_head_moves_each_logit_by_the_latents_share(backbone, images):
    """−z (W_dec · w), directions in raw units, at every latent."""
    model = Relu()
    _, z = site_values(backbone, model, images)
    clean, w = backbone.output(images), backbone.model.head.weight
    for latent in range(model.n_latents):
        with intervene(backbone, model, {latent: 0}, site=2):
            moved = backbone.output(images) - clean
        expected = -z[..., latent].mean(1)[:, None] * (w @ model.decoder_directions()[latent])
        assert torch.allclose(moved, expected, atol=1e-5), latent
    assert bool((z > 0.1).any())


SPARSE = {
    "relu": {"penalty": {"kind": "l1", "weight": 0.1}},
    "weighted": {"penalty": {"kind": "l1", "weight": 0.1, "norm": "weighted"}},
    "topk": {"activation": {"kind": "topk", "k": 4}},
    "batch_topk": {"activation": {"kind": "batch_topk", "k": 4}},
    "jump_relu": {"activation": {"kind": "jump_relu"}, "penalty": {"kind": "l0", "weight": 0.1}},
    "gated": {"activation": {"kind": "gated"}, "penalty": {"kind": "l1", "weight": 0.1}},
    "sigmoid": {"activation": {"kind": "sigmoid"}, "penalty": {"kind": "kl", "rho": 0.2}},
    "one_minus_exp": {"activation": {"kind": "one_minus_exp"}, "penalty": {"kind": "kl", "rho": 0.2}},
    "matryoshka": {"penalty": {"kind": "l1", "weight": 0.1}, "matryoshka": [4, 8]},
}


@pytest.mark.parametrize("case", SPARSE)
@pytest.mark.parametrize("normalize", ["center_scale", "none"])
def test_the_logit_gate_holds_for_every_sparse_model(backbone, images, case, normalize):
    """Ablating latent j moves the logit by −z_j (W_dec,j · w) to 1e-5, and equals re-decoding without it."""
    settings = {"kind": "sparse", "n_latents": 12, "normalize": normalize, **SPARSE[case]}
    torch.manual_seed(0)
    model = build(TypeAdapter(AutoencoderSettings).validate_python(settings), 6)
    rows = backbone.forward_to(torch.randn(200, 3, 4, 4), [backbone.site(2)])[0].flatten(0, 1)
    model.initialize(TensorStream(rows, batch_size=64), torch.Generator().manual_seed(0))
    model.eval()
    x, z = site_values(backbone, model, images)
    clean, w = backbone.output(images), backbone.model.head.weight
    seen = 0.0
    for latent in range(12):
        with intervene(backbone, model, {latent: 0}, site=2):
            moved = backbone.output(images) - clean
        gate = -z[..., latent].mean(1)[:, None] * (w @ model.decoder_directions()[latent])
        assert torch.allclose(moved, gate, atol=1e-5), latent
        without = z.clone()
        without[..., latent] = 0
        difference = model.decode(without.flatten(0, 1)) - model.decode(z.flatten(0, 1))
        assert torch.allclose(moved, difference.view_as(x).mean(1) @ w.T, atol=1e-5), latent
        seen = max(seen, float(moved.detach().abs().max()))
    assert seen > 1e-2


def test_changes_equal_recomputing_the_head(backbone, images):
    model = Relu()
    x, z = site_values(backbone, model, images)
    changed = z.clone()
    changed[..., 1] *= 2.5
    changed[..., 4] = 3.0
    changed[..., 7] += 0.5
    expected = backbone.model.head((x + model.decode(changed) - model.decode(z)).mean(1))
    with intervene(backbone, model, {1: Scale(2.5), 4: Value(3.0), 7: Delta(0.5)}, site=2):
        assert torch.allclose(backbone.output(images), expected, atol=1e-5)
    without_error = backbone.model.head(model.decode(changed).mean(1))
    with intervene(backbone, model, {1: 2.5, 4: Value(3.0), 7: Delta(0.5)}, site=2, keep_error=False):
        assert torch.allclose(backbone.output(images), without_error, atol=1e-5)


def test_a_nonlinear_decoder_is_changed_through_decode(backbone, images):
    model = Relu(linear=False)
    x, z = site_values(backbone, model, images)
    changed = z.clone()
    changed[..., 2] = 0
    expected = backbone.model.head((x + model.decode(changed) - model.decode(z)).mean(1))
    with intervene(backbone, model, {2: 0}, site=2):
        assert torch.allclose(backbone.output(images), expected, atol=1e-5)


@pytest.mark.parametrize("tokens", [[1, 3], torch.tensor([False, True, False, True])])
def test_only_the_chosen_patches_change(backbone, images, tokens):
    model = Relu()
    with intervene(backbone, model, {0: Value(4.0), 3: 0}, tokens, site=2):
        changed = backbone.forward_to(images, [backbone.site(2)])[0]
    clean, _ = site_values(backbone, model, images)
    # Reading hooks were set after the intervention's, so they see what it made.
    assert torch.equal(changed[:, [0, 2]], clean[:, [0, 2]])
    assert not torch.allclose(changed[:, [1, 3]], clean[:, [1, 3]])


def test_a_mask_may_differ_between_images(backbone, images):
    model = Relu()
    mask = torch.zeros(5, 4, dtype=torch.bool)
    mask[2, 1] = True
    with intervene(backbone, model, {0: Value(4.0)}, mask, site=2):
        changed = backbone.forward_to(images, [backbone.site(2)])[0]
    clean, _ = site_values(backbone, model, images)
    differs = (changed != clean).any(-1)
    assert torch.equal(differs, mask)


def test_no_change_with_the_error_term_leaves_the_output_bit_equal(backbone, images):
    clean = backbone.output(images)
    with intervene(backbone, Relu(), {}, site=2):
        assert torch.equal(backbone.output(images), clean)
    with splice(backbone, Relu(), error=True, site=2):
        assert torch.allclose(backbone.output(images), clean, atol=1e-6)
    with splice(backbone, Relu(), site=2):
        assert not torch.allclose(backbone.output(images), clean, atol=1e-3)


def test_blocks_nest_and_see_what_the_outer_one_made(backbone, images):
    model = Relu()
    x, z = site_values(backbone, model, images)
    first = x - z[..., 1:2] * model.decoder_directions()[1]
    z_after = model.encode(first.flatten(0, 1)).view_as(z)
    second = first - z_after[..., 2:3] * model.decoder_directions()[2]
    with intervene(backbone, model, {1: 0}, site=2):
        with intervene(backbone, model, {2: 0}, site=2):
            both = backbone.output(images)
        outer = backbone.output(images)
    assert torch.allclose(both, backbone.model.head(second.mean(1)), atol=1e-5)
    assert torch.allclose(outer, backbone.model.head(first.mean(1)), atol=1e-5)
    assert hooks_of(backbone) == 0


def fail_with_hooks(backbone):
    assert hooks_of(backbone) == 1
    raise ZeroDivisionError


def test_hooks_come_off_in_errors(backbone, images):
    clean = backbone.output(images)
    for context in (
        lambda: intervene(backbone, Relu(), {0: 0}, site=2),
        lambda: splice(backbone, Relu(), site=2),
        lambda: ablate_site(backbone, 2),
    ):
        with pytest.raises(ZeroDivisionError), context():
            fail_with_hooks(backbone)
    assert hooks_of(backbone) == 0
    broken = Relu()
    broken.encode_sparse = lambda x: 1 / 0
    with pytest.raises(ZeroDivisionError), intervene(backbone, broken, {0: 0}, site=2):
        backbone.output(images)
    assert hooks_of(backbone) == 0
    assert torch.equal(backbone.output(images), clean)


def test_zero_and_mean_ablation(backbone, images):
    head = backbone.model.head
    mean = torch.linspace(0, 1, 6)
    with ablate_site(backbone, 2):
        assert torch.allclose(backbone.output(images), head.bias.expand(5, 3))
    with ablate_site(backbone, 2, mean):
        assert torch.allclose(backbone.output(images), head(mean).expand(5, 3), atol=1e-6)


def test_gradients_pass_through_an_intervention(backbone, images):
    images = images.requires_grad_()
    with intervene(backbone, Relu(), {0: Value(2.0)}, site=2):
        backbone.forward(images).sum().backward()
    assert float(images.grad.abs().sum()) > 0


@pytest.mark.parametrize(
    ("changes", "tokens", "message"),
    [
        ({10: 0}, None, "no latent 10.*0 to 9"),
        ({-1: 0}, None, "no latent -1"),
        ({0: "off"}, None, "'off' is no change"),
        ({0: float("nan")}, None, "latent 0: nan is not finite"),
        ({0: Value(float("inf"))}, None, "is not finite"),
        ({0: Delta(1e40)}, None, "is not finite in float32"),
        ({0: 10**400}, None, "is not finite in float32"),
        ({0: Scale("2")}, None, "'2' is no number"),
        ({0: 0}, True, "a list of indices, or a mask of booleans"),
        ({0: 0}, [[0, 1], [2, 3]], r"give a mask \[batch, tokens\]"),
        ({0: 0}, [0.9], "whole numbers"),
        ({0: 0}, [4], "no token 4.*0 to 3"),
        ({0: 0}, torch.ones(7, dtype=torch.bool), "mask over 7 tokens.*has 4"),
        ({0: 0}, torch.ones(1, 5, 4, dtype=torch.bool), r"\[tokens\] or \[batch, tokens\], not \[1, 5, 4\]"),
    ],
)
def test_wrong_requests_are_explained(backbone, changes, tokens, message):
    with pytest.raises(RequestError, match=message), intervene(backbone, Relu(), changes, tokens, site=2):
        pass


def test_a_mask_for_another_number_of_images_is_refused(backbone, images):
    for mask in (torch.ones(3, 4, dtype=torch.bool), torch.ones(1, 4, dtype=torch.bool)):
        message = f"mask for {len(mask)} images, but the model was given 5"
        with pytest.raises(RequestError, match=message), intervene(backbone, Relu(), {0: 0}, mask, site=2):
            backbone.output(images)


def test_an_autoencoder_of_another_site_or_width_is_refused_naming_both(backbone):
    model = Relu()
    with pytest.raises(RequestError, match="give site=LAYER"), intervene(backbone, model, {0: 0}):
        pass
    model.site = backbone.describe_site(backbone.site(2))
    with intervene(backbone, model, {0: 0}):
        assert hooks_of(backbone) == 1
    torch.manual_seed(1)
    other = wrap(Last(), [2], image_size=4, name="another")
    with (
        pytest.raises(RequestError, match=r"layer 2 .*of Last.*not on.*of another.*weights"),
        intervene(other, model, {0: 0}),
    ):
        pass
    with pytest.raises(RequestError, match=r"width 5, but .* gives 6"), splice(backbone, Relu(d=5), site=2):
        pass


def local_transformers_model(folder):
    """Save a tiny randomly initialized ViT where `hf/PATH` finds it."""
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=48, image_size=32, patch_size=8
    )
    ViTModel(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return f"hf/{folder}"


@pytest.mark.parametrize("library", ["timm", "transformers"])
@pytest.mark.parametrize("tokens", ["patches", "all", "cls"])
def test_splice_with_the_error_term_changes_nothing_in_real_models(tmp_path, library, tokens):
    name = "timm/test_vit" if library == "timm" else local_transformers_model(tmp_path)
    settings = BackboneSettings(name=name, layers=[2], tokens=tokens, pretrained=library != "timm", precision="fp32")
    model = load_backbone(settings)
    height, width = model.transform.geometry.crop
    batch = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    site = model.site(2)
    autoencoder = Relu(d=site.d, n_latents=50)
    autoencoder.site = model.describe_site(site)
    clean = model.output(batch)
    with splice(model, autoencoder, error=True):
        assert torch.allclose(model.output(batch), clean, atol=1e-4)
    with intervene(model, autoencoder, {}):
        assert torch.equal(model.output(batch), clean)
    with splice(model, autoencoder):
        assert float((model.output(batch) - clean).abs().max()) > 1e-3
    assert torch.equal(model.output(batch), clean)
    assert hooks_of(model) == 0
