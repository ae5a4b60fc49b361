"""A small run with its report, its model ready to be asked, and a server that answers on this machine."""

import io
import json
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager

import numpy as np
import pytest
import yaml
from PIL import Image

from saetool.pipeline import Run

CONFIG = {
    "backbone": {"name": "timm/test_vit", "layers": [2], "pretrained": False, "image_size": 48, "precision": "fp32"},
    "autoencoder": {"kind": "sparse", "n_latents": 40, "activation": {"kind": "topk", "k": 5}},
    "training": {"tokens": 4000, "batch_size": 64, "held_out": 0.3},
    "evaluation": {"bootstrap": 10, "clusters": 4},
}


def png(seed: int = 0, size: tuple[int, int] = (90, 60), bright: bool = False) -> bytes:
    """The bytes of a picture: noise upon a gradient."""
    draw = np.random.default_rng(seed)
    pixels = draw.integers(0, 110, (size[1], size[0], 3)) + (120 if bright else 0)
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    """Where the run is."""
    root = tmp_path_factory.mktemp("serving")
    for kind in ("bright", "dark"):
        (root / "images" / kind).mkdir(parents=True)
        for i in range(20):
            (root / "images" / kind / f"{i}.png").write_bytes(png(i, bright=kind == "bright"))
    config = {"run": str(root / "run"), "images": {"source": str(root / "images")}, **CONFIG}
    (root / "a.yaml").write_text(yaml.safe_dump(config))
    Run.load(str(root / "a.yaml")).make_all()
    return root


@pytest.fixture(scope="session")
def run(place):
    return Run.load(str(place / "run"))


@pytest.fixture(scope="session")
def session(run):
    from saetool.serving.session import Session

    member = run.members[0]
    autoencoder = run.make("autoencoder")[0]
    return Session.open(autoencoder, run.store, member.config.backbone, run.source)


class Client:
    """Asks the server as a program would; `ask` returns the status and the body."""

    def __init__(self, port: int):
        self.port, self.address = port, f"http://127.0.0.1:{port}"

    def ask(self, path: str, body: bytes | None = None, **headers: str):
        asked = urllib.request.Request(f"{self.address}{path}", body, {k.title(): v for k, v in headers.items()})
        try:
            with urllib.request.urlopen(asked, timeout=120) as reply:
                return reply.status, reply.read()
        except urllib.error.HTTPError as refused:
            return refused.code, refused.read()

    def told(self, path: str, body: bytes, **headers: str):
        status, reply = self.ask(path, body, **headers)
        return status, json.loads(reply)


@contextmanager
def answering(run):
    """A server of a run's site, for as long as the block runs."""
    pytest.importorskip("starlette", reason="needs starlette (pip install 'saetool[serve]')")
    uvicorn = pytest.importorskip("uvicorn", reason="needs uvicorn (pip install 'saetool[serve]')")
    from saetool.serving.app import listen
    from saetool.serving.opening import open_site

    place = listen(0)
    server = uvicorn.Server(uvicorn.Config(open_site(run), log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [place]}, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    yield Client(place.getsockname()[1])
    server.should_exit = True
    thread.join()
    place.close()


@pytest.fixture(scope="session")
def client(run):
    with answering(run) as client:
        yield client
