"""Stored tokens equal the library's own intermediate outputs, over many tiny, randomly initialized architectures."""

import pytest
import timm
import torch
from transformers import (
    BeitConfig,
    BeitModel,
    CLIPConfig,
    CLIPModel,
    DeiTConfig,
    DeiTModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    Siglip2Config,
    Siglip2Model,
    SiglipConfig,
    SiglipModel,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    ViTMAEConfig,
    ViTMAEForPreTraining,
)

from saetool.errors import RequestError, WorkError
from saetool.vision import BackboneSettings, load_backbone
from saetool.vision.backbone import Backbone
from saetool.vision.timm_models import parts_of, timm_transform

CPU = torch.device("cpu")
SMALL = {"depth": 3, "embed_dim": 48, "num_heads": 2}
# name, arguments, prefix tokens, grid
TIMM = [
    ("vit_tiny_patch16_224", {"img_size": 64, **SMALL}, 1, (4, 4)),
    ("vit_base_patch16_clip_224", {"img_size": (96, 64), **SMALL}, 1, (6, 4)),
    ("vit_small_patch14_reg4_dinov2", {"img_size": 56, **SMALL}, 5, (4, 4)),
    ("vit_base_patch16_siglip_224", {"img_size": 64, **SMALL}, 0, (4, 4)),
    ("vit_medium_patch16_reg4_gap_256", {"img_size": 64, **SMALL}, 4, (4, 4)),
    ("deit_tiny_distilled_patch16_224", {"img_size": 64, **SMALL}, 2, (4, 4)),
    ("beit_base_patch16_224", {"img_size": 64, **SMALL}, 1, (4, 4)),
    ("eva02_tiny_patch14_224", {"img_size": 56, **SMALL}, 1, (4, 4)),
    ("vit_small_patch16_dinov3", {"img_size": 64, **SMALL}, 5, (4, 4)),
    ("vit_relpos_small_patch16_224", {"img_size": 64, **SMALL}, 0, (4, 4)),
    ("vit_small_r26_s32_224", {"img_size": 64, **SMALL}, 1, (2, 2)),
    ("test_vit2", {}, 1, (10, 10)),
]
TOWER = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 48,
}
PLAIN = {**TOWER, "image_size": 32, "patch_size": 8}
TEXT = {**TOWER, "vocab_size": 64, "max_position_embeddings": 8, "projection_size": 32}
HF = {
    "vit": (lambda: ViTForImageClassification(ViTConfig(**PLAIN)), 1, (4, 4)),
    "vit-wide": (lambda: ViTForImageClassification(ViTConfig(**{**PLAIN, "image_size": (32, 48)})), 1, (4, 6)),
    "dinov2": (lambda: Dinov2Model(Dinov2Config(**PLAIN)), 1, (4, 4)),
    "dinov2-registers": (lambda: Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**PLAIN)), 5, (4, 4)),
    "dinov3": (lambda: DINOv3ViTModel(DINOv3ViTConfig(**PLAIN, num_register_tokens=4)), 5, (4, 4)),
    "deit": (lambda: DeiTModel(DeiTConfig(**PLAIN)), 2, (4, 4)),
    "beit": (lambda: BeitModel(BeitConfig(**PLAIN)), 1, (4, 4)),
    "mae": (lambda: ViTMAEForPreTraining(ViTMAEConfig(**PLAIN, decoder_hidden_size=32)), 1, (4, 4)),
    "clip": (lambda: CLIPModel(CLIPConfig(vision_config=PLAIN, text_config=TEXT)), 1, (4, 4)),
    "siglip": (lambda: SiglipModel(SiglipConfig(vision_config=PLAIN, text_config=TEXT)), 0, (4, 4)),
    "siglip2": (
        lambda: Siglip2Model(
            Siglip2Config(vision_config={**TOWER, "patch_size": 8, "num_patches": 16}, text_config=TEXT)
        ),
        0,
        (4, 4),
    ),
}


def timm_backbone(name, arguments, layers=(1, 3), tokens="all"):
    torch.manual_seed(0)
    model = timm.create_model(name, **arguments)
    size = arguments.get("img_size")
    transform = timm_transform(model, (size, size) if isinstance(size, int) else size)
    return Backbone(parts_of(name, model, transform, "fp32", CPU), list(layers), tokens)


@pytest.fixture
def hf_folder(tmp_path):
    def save(kind):
        torch.manual_seed(0)
        HF[kind][0]().save_pretrained(tmp_path)
        size = {"height": 32, "width": 48 if kind == "vit-wide" else 32}
        ViTImageProcessor(size=size).save_pretrained(tmp_path)
        return tmp_path

    return save


@pytest.mark.parametrize(("name", "arguments", "prefix", "grid"), TIMM, ids=[case[0] for case in TIMM])
def test_timm_tokens_equal_forward_intermediates(name, arguments, prefix, grid):
    backbone = timm_backbone(name, arguments)
    assert (backbone.prefix_tokens, backbone.grid) == (prefix, grid)
    images = torch.randn(2, 3, *backbone.transform.geometry.crop, generator=torch.Generator().manual_seed(1))
    stored = backbone.forward_to(images)
    with torch.no_grad():
        own = backbone.model.forward_intermediates(
            images, indices=[0, 2], output_fmt="NLC", intermediates_only=True, return_prefix_tokens=prefix > 0
        )
    for tokens, intermediate in zip(stored, own, strict=True):
        patches, before = intermediate if isinstance(intermediate, tuple) else (intermediate, intermediate[:, :0])
        torch.testing.assert_close(tokens[:, prefix:], patches, rtol=0, atol=0)
        torch.testing.assert_close(tokens[:, :prefix], before, rtol=0, atol=0)


@pytest.mark.parametrize("kind", HF)
def test_transformers_tokens_equal_hidden_states(kind, hf_folder):
    _, prefix, grid = HF[kind]
    settings = BackboneSettings(name=f"hf/{hf_folder(kind)}", layers=[1, 2], tokens="all", precision="fp32")
    backbone = load_backbone(settings)
    assert (backbone.prefix_tokens, backbone.grid, backbone.n_layers) == (prefix, grid, 3)
    images = torch.randn(2, 3, *backbone.transform.geometry.crop, generator=torch.Generator().manual_seed(1))
    stored = backbone.forward_to(images)
    backbone.model.config.output_hidden_states = True
    with torch.no_grad():
        hidden = backbone._run(images).hidden_states
    backbone.model.config.output_hidden_states = False
    for tokens, again, layer in zip(stored, backbone.forward_to(images), (1, 2), strict=True):
        torch.testing.assert_close(tokens, again, rtol=0, atol=0)
        torch.testing.assert_close(tokens, hidden[layer], rtol=0, atol=0)


def test_the_vision_half_has_the_weights_of_the_whole_model(hf_folder):
    folder = hf_folder("clip")
    whole = CLIPModel.from_pretrained(folder)
    half = load_backbone(BackboneSettings(name=f"hf/{folder}", layers=[1], precision="fp32"))
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = whole.vision_model(images).pooler_output
    torch.testing.assert_close(half.output(images), expected)


def test_the_last_block_is_not_the_normed_output(hf_folder):
    backbone = load_backbone(
        BackboneSettings(name=f"hf/{hf_folder('dinov2')}", layers=[3], tokens="all", precision="fp32")
    )
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        final = backbone._run(images).last_hidden_state
        torch.testing.assert_close(backbone.model.layernorm(backbone.forward_to(images)[0]), final)


def test_a_masked_autoencoder_sees_every_patch_in_its_place(hf_folder):
    backbone = load_backbone(BackboneSettings(name=f"hf/{hf_folder('mae')}", layers=[1], precision="fp32"))
    images = torch.randn(1, 3, 32, 32)
    changed = images.clone()
    changed[..., 8:16, 24:] += 50
    moved = (backbone.forward_to(changed)[0] - backbone.forward_to(images)[0]).norm(dim=-1)[0]
    assert moved.shape == (16,)
    assert moved.argmax() == 7


def test_siglip2_patches_are_cut_in_the_order_of_its_own_processor(hf_folder):
    from transformers.models.siglip2.image_processing_siglip2 import convert_image_to_patches

    from saetool.vision.transformers_models import _as_patches

    images = torch.randn(2, 3, 32, 48)
    cut = _as_patches(images, (8, 8), (4, 6))["pixel_values"]
    torch.testing.assert_close(cut[1], convert_image_to_patches(images[1], 8), rtol=0, atol=0)


def test_another_input_size_gives_another_grid(hf_folder):
    folder = hf_folder("vit")
    settings = BackboneSettings(name=f"hf/{folder}", layers=[1], image_size=(48, 64), precision="fp32")
    backbone = load_backbone(settings)
    assert backbone.grid == (6, 8)
    assert backbone.forward_to(torch.randn(1, 3, 48, 64))[0].shape == (1, 48, 32)


def test_random_weights_of_a_local_architecture(hf_folder):
    fields = {"name": f"hf/{hf_folder('dinov2')}", "layers": [1], "precision": "fp32"}
    published, random = (load_backbone(BackboneSettings(**fields, pretrained=kind)) for kind in (True, False))
    assert published.grid == random.grid
    assert published.weights_digest != random.weights_digest


@pytest.mark.parametrize("kind", ["vit", "clip", "dinov2"])
def test_a_local_weights_file_is_translated_by_the_library(kind, hf_folder):
    folder = hf_folder(kind)
    fields = {"name": f"hf/{folder}", "layers": [1], "precision": "fp32"}
    published = load_backbone(BackboneSettings(**fields))
    weights = str(folder / "model.safetensors")
    filled = load_backbone(BackboneSettings(**fields, weights=weights, pretrained=False))
    assert filled.weights_digest == published.weights_digest


def test_weights_of_another_model_are_refused(hf_folder, tmp_path):
    from safetensors.torch import save_file

    save_file(timm.create_model("test_vit").state_dict(), tmp_path / "other.safetensors")
    settings = BackboneSettings(name=f"hf/{hf_folder('vit')}", layers=[1], weights=str(tmp_path / "other.safetensors"))
    with pytest.raises(RequestError, match=r"other\.safetensors lacks"):
        load_backbone(settings)


@pytest.mark.parametrize(
    ("kind", "size", "sentence"),
    [
        ("hiera", None, "do not answer bright cells"),
        ("timesformer", None, "looks at videos"),
        ("videomae", None, "looks at videos"),
        ("mobilevit", 64, "first axis is not the images"),
    ],
)
def test_types_that_are_no_plain_transformer_are_refused_in_a_sentence(kind, size, sentence):
    settings = BackboneSettings(name=f"hf/{kind}", layers=[1], pretrained=False, precision="fp32", image_size=size)
    with pytest.raises(RequestError, match=sentence):
        load_backbone(settings)


@pytest.mark.parametrize(("kind", "grid", "d"), [("focalnet", (14, 14), 384), ("convnextv2", (56, 56), 96)])
def test_a_windowed_or_convolutional_type_works_at_its_own_grid(kind, grid, d):
    settings = BackboneSettings(name=f"hf/{kind}", layers=[1], pretrained=False, precision="fp32")
    backbone = load_backbone(settings)
    assert (backbone.grid, backbone.prefix_tokens, backbone.sites[0].d) == (grid, 0, d)


def test_a_classification_head_stays_with_the_weights(hf_folder):
    from saetool.evaluation.readout import Readout, find_head

    folder = hf_folder("vit")
    whole = ViTForImageClassification.from_pretrained(folder).eval()
    backbone = load_backbone(BackboneSettings(name=f"hf/{folder}", layers=[1], precision="fp32"))
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = whole(images).logits
        torch.testing.assert_close(backbone.output(images), expected)
        assert find_head(backbone, expected.shape[1]) == "classifier"
        embedding, logits = Readout(backbone, "classifier")(images)
    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(whole.classifier(embedding), expected)


def test_named_blocks_are_blocks():
    from torchvision.models import VisionTransformer

    from saetool.vision import wrap

    torch.manual_seed(0)
    module = VisionTransformer(32, 8, num_layers=3, num_heads=2, hidden_dim=16, mlp_dim=16, num_classes=5)
    backbone = wrap(module, [2], image_size=32)
    assert backbone.blocks == tuple(f"encoder.layers.encoder_layer_{i}" for i in range(3))
    assert (backbone.grid, backbone.prefix_tokens, backbone.sites[0].layer) == ((4, 4), 1, 2)


def binary(content):
    def write(folder):
        (folder / "model.safetensors").unlink()
        torch.save(content, folder / "pytorch_model.bin")

    return write


class Runs:
    """A pickle that would run a command."""

    def __reduce__(self):
        return exec, ("raise SystemExit('it ran')",)


def changed(file, **facts):
    import json

    return lambda folder: (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | facts))


DAMAGE = {
    "weights are no weights": lambda folder: (folder / "model.safetensors").write_bytes(b"garbage"),
    "weights are empty": lambda folder: (folder / "model.safetensors").write_bytes(b""),
    "weights are cut": lambda folder: (folder / "model.safetensors").write_bytes(
        (folder / "model.safetensors").read_bytes()[:5000]
    ),
    "weights run code": binary({"a": Runs()}),
    "weights are a list": binary([1]),
    "weights have numbers for names": binary({1: torch.ones(2)}),
    "config is no config": lambda folder: (folder / "config.json").write_bytes(b"garbage"),
    "config is a list": lambda folder: (folder / "config.json").write_text("[]"),
    "width is half a character": changed("config.json", hidden_size="\ud800"),
    "width is NaN": changed("config.json", hidden_size=float("nan")),
    "width is zero": changed("config.json", hidden_size=0),
    "patches are empty": changed("config.json", patch_size=0),
    "size is a list": changed("config.json", image_size=[]),
    "processor is a list": lambda folder: (folder / "preprocessor_config.json").write_text("[]"),
    "mean is text": changed("preprocessor_config.json", image_mean=["x"] * 3),
    "mean is short": changed("preprocessor_config.json", image_mean=[0.5]),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_model_folders_end_in_a_sentence(damage, hf_folder):
    folder = hf_folder("vit")
    DAMAGE[damage](folder)
    with pytest.raises(WorkError, match=r"cannot be loaded: the folder's files are damaged, or no model's \("):
        load_backbone(BackboneSettings(name=f"hf/{folder}", layers=[1], precision="fp32"))


def test_code_that_comes_with_a_model_is_never_run(tmp_path, monkeypatch):
    import json

    ran = tmp_path / "ran"
    (tmp_path / "code.py").write_text(f"open({str(ran)!r}, 'w')\nclass Config: pass\nclass Model: pass\n")
    wants = {"AutoConfig": "code.Config", "AutoModel": "code.Model"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "unheard_of", "auto_map": wants}))
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(RequestError, match="wants to run Python code that comes with it"):
        load_backbone(BackboneSettings(name=f"hf/{tmp_path}", layers=[1]))
    assert not ran.exists()
