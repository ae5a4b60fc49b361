"""Without a hub: one look, and one message that names what was wanted and the way out."""

import json
import socket
import sys
import time

import pytest

from saetool import cli
from saetool.artifacts import hub


@pytest.fixture
def no_hub(monkeypatch, tmp_path):
    """Let no address be reached, no cache be found, and no time be spent on trying again."""
    from huggingface_hub import constants

    def refuse(address, *args, **kwargs):
        raise socket.gaierror(-2, "Name or service not known")

    def wait(seconds):
        raise AssertionError(f"waits {seconds} s to try again")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(time, "sleep", wait)
    monkeypatch.setattr(hub, "getproxies", dict)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    hub.why_unreachable.cache_clear()
    yield constants
    hub.why_unreachable.cache_clear()


@pytest.fixture
def folder(tmp_path):
    from PIL import Image

    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "pictures/a.png")
    return f"images={json.dumps({'source': str(tmp_path / 'pictures')})}"


@pytest.mark.parametrize(
    ("changed", "message", "way_out"),
    [
        ("backbone.layers=[11]", "the weights of timm/vit_base_patch16_clip_224.openai", "backbone.weights=FILE"),
        ("backbone.name=hf/openai/clip-vit-base-patch16", "hf/openai/clip-vit-base-patch16", "a local folder"),
        (None, "the dataset ILSVRC/imagenet-1k", "a folder of images"),
    ],
)
def test_a_config_that_needs_the_hub_ends_at_once(
    no_hub, folder, tmp_path, monkeypatch, capsys, changed, message, way_out
):
    overrides = [f"run={tmp_path / 'run'}", *([folder, changed] if changed else [])]
    monkeypatch.setattr(sys, "argv", ["saetool", "cache", "vit_b16_clip_imagenet", *overrides])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr().err
    assert ended.value.code == 1
    assert said.count("\n") == 1
    assert message in said
    assert "huggingface.co cannot be reached: Name or service not known" in said
    assert way_out in said
    assert no_hub.HF_HUB_OFFLINE is False  # as it was


def test_a_proxy_is_left_to_decide(no_hub, monkeypatch):
    monkeypatch.setattr(hub, "getproxies", lambda: {"https": "http://proxy:3128"})
    assert hub.why_unreachable() is None


def test_a_hub_that_answers_is_asked(no_hub, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.undo()
        monkeypatch.setattr(no_hub, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setattr(hub, "getproxies", dict)
        hub.why_unreachable.cache_clear()
        assert hub.why_unreachable() is None
        with hub.reaching():
            assert no_hub.HF_HUB_OFFLINE is False
