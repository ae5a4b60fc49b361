"""A toy autoencoder with everything that a trainer must carry over a kill: phases, noise, buffers, constraints."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from saetool.activations import TensorStream
from saetool.artifacts import Partial
from saetool.autoencoders.base import Autoencoder, Loss, Phase
from saetool.training.learner import Learner
from saetool.training.metrics import MetricLog
from saetool.training.settings import TrainingSettings
from saetool.training.trainer import Run, learn


@pytest.fixture(autouse=True, scope="module")
def _one_thread(one_thread):
    """Of every test in this room."""


class Toy(Autoencoder):
    """z = ReLU(W_enc x̃ + b), x̂ = W_dec z: noisy inputs, unit decoder rows, two phases, a counter in a buffer."""

    updates: Tensor

    def __init__(self, n_latents: int = 12, dtype=torch.float32, two_phases: bool = True, noise: float = 0.01):
        super().__init__()
        self.d_in, self.n_latents, self.two_phases, self.noise = 8, n_latents, two_phases, noise
        draw = torch.Generator().manual_seed(7)
        self.encoder = nn.Parameter(torch.randn(n_latents, self.d_in, generator=draw, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(n_latents, dtype=dtype))
        self.decoder = nn.Parameter(torch.randn(n_latents, self.d_in, generator=draw, dtype=dtype))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def encode(self, x):
        return torch.relu(x @ self.encoder.T + self.bias)

    def decode(self, z):
        return z @ self.decoder

    def loss(self, x, step, generator):
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype) * self.noise
        z = self.encode(x + noise)
        reconstruction = (self.decode(z) - x).square().sum() / len(x)
        return Loss({"reconstruction": reconstruction, "sparsity": 0.01 * z.sum() / len(x)}, {"l1": z.sum() / len(x)})

    def initialize(self, stream, generator, training=None):
        self.bias.copy_(torch.randn(self.bias.shape, generator=generator) * 0.1)

    def after_update(self, optimizer, step, generator, losses):
        self.decoder.div_(self.decoder.norm(dim=1, keepdim=True))
        self.updates += 1

    def phases(self):
        return [Phase("decoder", 0.4), Phase("all", 0.6)] if self.two_phases else [Phase("train")]

    def enter(self, phase):
        self.encoder.requires_grad_(phase != "decoder")


def rows_of(seed: int, rows: int, d_in: int = 8) -> Tensor:
    """Return correlated rows."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(rows, d_in, generator=draw) @ torch.randn(d_in, d_in, generator=draw)


@pytest.fixture
def toy():
    return Toy


@pytest.fixture
def make_stream():
    """Return a function that makes a fresh stream: `batch_size` of 320 training rows, 70 held out."""

    def make(batch_size: int = 32, held_out: int = 70, dtype=torch.float32) -> TensorStream:
        train, rest = rows_of(1, 320).to(dtype), rows_of(2, 70)[:held_out].to(dtype)
        return TensorStream(train, rest, batch_size=batch_size, seed=5)

    return make


@pytest.fixture
def make_run(tmp_path: Path):
    """Return a function that puts a model into a directory, ready to learn; the same name again resumes."""

    def make(model: Autoencoder, settings: TrainingSettings, name: str = "toy", seed: int = 3) -> Run:
        path = tmp_path / f"{name}.partial"
        path.mkdir(exist_ok=True)
        partial = Partial(path, tmp_path / name)
        return Run(Learner(model, settings, seed, torch.device("cpu")), partial, MetricLog(partial, []))

    return make


@pytest.fixture
def run_to_end(make_run, make_stream):
    """Return a function that trains a toy to its end and returns its run."""

    def train(model: Autoencoder, settings: TrainingSettings, name: str = "toy", stream=None) -> Run:
        run = make_run(model, settings, name)
        learn([run], stream or make_stream(settings.batch_size))
        return run

    return train


@pytest.fixture
def lines_of():
    """Return a function that reads a run's metric lines, rates (the only clock in them) left out."""

    def read(run: Run, **wanted) -> list[dict]:
        lines = [json.loads(line) for line in (run.partial.path / "metrics.jsonl").read_text().splitlines()]
        for line in lines:
            line.pop("rate", None)
        return [line for line in lines if all(line.get(key) == value for key, value in wanted.items())]

    return read


def sparse(activation: str, penalty: dict | None = None, **more) -> dict:
    """Return the settings of a small sparse model."""
    k = {"k": 5} if activation in ("topk", "batch_topk") else {}
    settings = {"kind": "sparse", "n_latents": 40, "initial_l0": 6, "activation": {"kind": activation, **k}, **more}
    return settings | ({"penalty": penalty} if penalty else {})


L1 = {"kind": "l1", "weight": 0.1, "warmup_steps": 4}
SMALL_MODELS = {
    "l1": {"autoencoder": sparse("relu", L1)},
    "clipped": {"autoencoder": sparse("relu"), "training": {"clip_norm": 0.5, "schedule": "cosine"}},
    "steered": {"autoencoder": sparse("relu", {"kind": "l1", "target_l0": 4, "warmup_steps": 2})},
    "resampled": {
        "autoencoder": sparse(
            "relu", L1 | {"weight": 1.0}, dead={"kind": "resample", "every_steps": 6, "after_tokens": 200}
        )
    },
    "topk": {"autoencoder": sparse("topk", dead={"kind": "auxk", "k": 4, "after_tokens": 96})},
    "gains": {"autoencoder": sparse("topk", initial_gain=0.3)},
    "batch_topk": {"autoencoder": sparse("batch_topk", dead={"kind": "auxk", "k": 4, "after_tokens": 96})},
    "jump_relu": {"autoencoder": sparse("jump_relu", {"kind": "l0", "weight": 0.01})},
    "gated": {"autoencoder": sparse("gated", L1)},
    "kl": {"autoencoder": sparse("sigmoid", {"kind": "kl", "rho": 0.1, "decoder_decay": 0.01})},
    "kl_exp": {"autoencoder": sparse("one_minus_exp", {"kind": "kl", "rho": 0.1})},
    "matryoshka": {"autoencoder": sparse("topk", matryoshka=[10, 20])},
    "pieces": {"autoencoder": sparse("relu", L1), "training": {"accumulate": 2}},
    "linear": {"autoencoder": {"kind": "linear", "n_latents": 4, "solver": "gradient"}},
    "closed": {"autoencoder": {"kind": "linear", "n_latents": 4}},
    "deep": {"autoencoder": {"kind": "dense", "n_latents": 3, "hidden": [8], "pretrain": True}},
    "denoising": {
        "autoencoder": {"kind": "denoising", "n_latents": 16, "corruption": {"kind": "gaussian", "sigma": 0.3}}
    },
    "contractive": {"autoencoder": {"kind": "contractive", "n_latents": 16, "weight": 0.1, "tied": True}},
    "variational": {"autoencoder": {"kind": "variational", "n_latents": 3, "hidden": [8]}},
}


@pytest.fixture(scope="session")
def small_models() -> dict[str, dict]:
    """Return {name: {"autoencoder": settings, "training": changes}} over every family and cure, for d_in 12."""
    return SMALL_MODELS
