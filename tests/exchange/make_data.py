"""Make the checkpoints that the tests read, with the tools themselves, and check that they open what saetool writes.

    python tests/exchange/make_data.py [--environments DIR] [--only TOOL …]

Each tool is installed into an environment of its own (without dependencies that it does not need here; torch is that of
the interpreter which runs this script). There this file runs again as a worker: it builds tiny autoencoders, saves them
with the tool's own function, and writes beside each what the tool computes from `x`: codes and reconstructions. The
result is committed. `exports` then loads what `saetool export` writes and compares the same numbers.

saev after 0.1.0, ViT-Prisma's autoencoders and OpenAI's sparse_autoencoder are on no package index, so no file here is
theirs: see test_formats_without_a_package.py.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

HERE = Path(__file__).resolve().parent
DATA = HERE / "data"
D_IN, N, ROWS = 6, 16, 12
PACKAGES = {
    "sae_lens": "sae-lens==6.54.12 transformer-lens>=2.16.1,<3 fancy-einsum better-abc beartype simple-parsing "
    "docstring-parser babe nltk tenacity python-dotenv plotly plotly-express narwhals transformers-stream-generator "
    "typeguard requests urllib3 charset-normalizer certifi wandb opentelemetry-api importlib-metadata zipp protobuf "
    "sentry-sdk gitpython gitdb smmap click",
    "sparsify": "eai-sparsify==1.3.3 natsort schedulefree simple-parsing docstring-parser accelerate",
    "saev": "saev==0.1.0 beartype tyro",
    "overcomplete": "overcomplete==0.3.0 opencv-python-headless scikit-image imageio tifffile lazy-loader "
    "matplotlib<3.9",
    "dictionary_learning": "dictionary-learning==0.1.0 nnsight<0.4 accelerate requests urllib3 charset-normalizer "
    "certifi python-socketio python-engineio bidict simple-websocket wsproto h11 zstandard",
}
PACKAGES["sae_lens_5"] = PACKAGES["sae_lens"].replace("6.54.12", "5.11.0") + " automated-interpretability"
"""What each tool needs to build, save and load an autoencoder, beside the packages that saetool brings."""


def x() -> torch.Tensor:
    """Return the rows that every tool is given: some are far from the others in size."""
    rows = torch.randn(ROWS, D_IN, generator=torch.Generator().manual_seed(7)) * 1.5 + 0.3
    rows[::4] *= 3
    return rows


def fill(module: torch.nn.Module, seed: int = 0, scale: float = 0.6) -> None:
    """Give every parameter random values, so that nothing is hidden behind zeros or a tied initialization."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(module.named_parameters()):
            drawn = torch.randn(parameter.shape, generator=generator) * scale
            parameter.copy_(drawn.abs() + 0.2 if "threshold" in name else drawn)


def keep(place: Path, version: str, codes: torch.Tensor, x_hat: torch.Tensor, **facts) -> None:
    """Write what the tool computed from `x`, its version, and what must be said beside the file."""
    tensors = {"x": x(), "codes": codes.detach().float().contiguous(), "x_hat": x_hat.detach().float().contiguous()}
    folder = place if place.is_dir() else place.parent
    name = "expected" if place.is_dir() else f"{place.stem}-expected"
    save_file(tensors, folder / f"{name}.safetensors")
    (folder / f"{name}.json").write_text(json.dumps({"version": version, **facts}, indent=1) + "\n")


def make_sae_lens(out: Path) -> None:
    """SAELens: every architecture for inference, and each option that changes numbers."""
    import sae_lens
    from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
    from sae_lens.saes.gated_sae import GatedSAE, GatedSAEConfig
    from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
    from sae_lens.saes.matryoshka_batchtopk_sae import (
        MatryoshkaBatchTopKTrainingSAE,
        MatryoshkaBatchTopKTrainingSAEConfig,
    )
    from sae_lens.saes.sae import SAEMetadata
    from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig
    from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig

    metadata = SAEMetadata(model_name="openai/clip-vit-base-patch32", hook_name="blocks.8.hook_mlp_out")
    sizes = {"d_in": D_IN, "d_sae": N, "metadata": metadata}
    cases = {
        "standard": (StandardSAE, StandardSAEConfig(**sizes)),
        "standard_input": (StandardSAE, StandardSAEConfig(**sizes, apply_b_dec_to_input=False)),
        "standard_layer_norm": (StandardSAE, StandardSAEConfig(**sizes, normalize_activations="layer_norm")),
        "standard_bfloat16": (StandardSAE, StandardSAEConfig(**sizes, dtype="bfloat16")),
        "gated": (GatedSAE, GatedSAEConfig(**sizes)),
        "gated_input": (GatedSAE, GatedSAEConfig(**sizes, apply_b_dec_to_input=False)),
        "jumprelu": (JumpReLUSAE, JumpReLUSAEConfig(**sizes)),
        "topk": (TopKSAE, TopKSAEConfig(**sizes, k=4)),
        "topk_rescaled": (TopKSAE, TopKSAEConfig(**sizes, k=4, rescale_acts_by_decoder_norm=True)),
    }
    for name, (kind, config) in cases.items():
        sae = kind(config)
        fill(sae)
        sae.save_model(out / name)
        loaded = kind.load_from_disk(out / name, dtype="float32")
        keep(out / name, sae_lens.__version__, loaded.encode(x()), loaded(x()))
    training = {
        "batchtopk": (BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig(**sizes, k=3)),
        "matryoshka": (
            MatryoshkaBatchTopKTrainingSAE,
            MatryoshkaBatchTopKTrainingSAEConfig(**sizes, k=3, matryoshka_widths=[4, 8, N]),
        ),
    }
    for name, (kind, config) in training.items():
        sae = kind(config)
        fill(sae)
        sae.topk_threshold.fill_(0.7)
        sae.save_inference_model(out / f"{name}_inference")
        sae.save_model(out / name)  # the training's own, unfolded
        loaded = JumpReLUSAE.load_from_disk(out / f"{name}_inference")
        norms = sae.W_dec.norm(dim=-1)
        pre = (x() - sae.b_dec) @ sae.W_enc + sae.b_enc
        if not torch.equal(loaded.encode(x()) > 0, pre * norms > 0.7):
            raise SystemExit("SAELens cuts somewhere else than thought")
        for folder in (f"{name}_inference", name):
            keep(out / folder, sae_lens.__version__, loaded.encode(x()), loaded(x()))
    sae = StandardSAE(StandardSAEConfig(**sizes, normalize_activations="expected_average_only_in"))
    fill(sae)
    sae.save_model(out / "standard_expected_norm")
    (out / "standard_expected_norm/activation_scaler.json").write_text(
        json.dumps({"scaling_factor": 1.7, "has_whitening": False})
    )
    sae.fold_activation_norm_scaling_factor(1.7)
    keep(out / "standard_expected_norm", sae_lens.__version__, sae.encode(x()), sae(x()))


def make_sae_lens_5(out: Path) -> None:
    """SAELens before version 6: one class, the activation by its name in the config."""
    import sae_lens
    from sae_lens.sae import SAE, SAEConfig

    common = {
        "d_in": D_IN,
        "d_sae": N,
        "finetuning_scaling_factor": False,
        "context_size": 1,
        "model_name": "some-model",
        "hook_name": "blocks.8.hook_resid_post",
        "hook_layer": 8,
        "hook_head_index": None,
        "prepend_bos": False,
        "dataset_path": "",
        "dataset_trust_remote_code": False,
        "dtype": "float32",
        "device": "cpu",
        "sae_lens_training_version": None,
    }
    cases = {
        "standard": {"architecture": "standard", "activation_fn_str": "relu", "apply_b_dec_to_input": True},
        "standard_topk": {
            "architecture": "standard",
            "activation_fn_str": "topk",
            "activation_fn_kwargs": {"k": 4},
            "apply_b_dec_to_input": False,
        },
        "jumprelu_layer_norm": {
            "architecture": "jumprelu",
            "activation_fn_str": "relu",
            "apply_b_dec_to_input": False,
            "normalize_activations": "layer_norm",
        },
        "gated": {"architecture": "gated", "activation_fn_str": "relu", "apply_b_dec_to_input": False},
    }
    for name, changed in cases.items():
        sae = SAE(SAEConfig(**{**common, "normalize_activations": "none", **changed}))
        fill(sae)
        sae.save_model(out / name)
        loaded = SAE.load_from_pretrained(out / name)
        keep(out / name, sae_lens.__version__, loaded.encode(x()), loaded(x()))


def make_sparsify(out: Path) -> None:
    """sparsify: TopK, its folder named after the hook point."""
    from importlib.metadata import version

    from sparsify import SparseCoder
    from sparsify.config import SparseCoderConfig

    sae = SparseCoder(D_IN, SparseCoderConfig(num_latents=N, k=4))
    fill(sae)
    place = out / "layers.5"
    sae.save_to_disk(place)
    loaded = SparseCoder.load_from_disk(place)
    found = loaded.encode(x())
    codes = torch.zeros(ROWS, N).scatter(1, found.top_indices, found.top_acts)
    keep(place, version("eai-sparsify"), codes, loaded(x()).sae_out)


def make_saev(out: Path) -> None:
    """saev 0.1.0: ReLU in one file."""
    from importlib.metadata import version

    from saev import config, nn

    sae = nn.SparseAutoencoder(config.SparseAutoencoder(d_vit=D_IN, exp_factor=2))
    fill(sae)
    out.mkdir(parents=True, exist_ok=True)
    nn.dump(str(out / "relu.pt"), sae)
    loaded = nn.load(str(out / "relu.pt"))
    x_hat, codes, _ = loaded(x())
    keep(out / "relu.pt", version("saev"), codes, x_hat)


def make_overcomplete(out: Path) -> None:
    """overcomplete: state dicts of every class with a linear encoder."""
    from importlib.metadata import version

    from overcomplete.sae import SAE, BatchTopKSAE, JumpSAE, RATopKSAE, TopKSAE

    out.mkdir(parents=True, exist_ok=True)
    points = torch.randn(10, D_IN, generator=torch.Generator().manual_seed(3))
    cases = {
        "relu": (SAE(D_IN, N), {"class": "SAE"}),
        "topk": (TopKSAE(D_IN, N, top_k=4), {"class": "TopKSAE", "top_k": 4}),
        "topk_multiplied": (
            TopKSAE(D_IN, N, top_k=4, dictionary_params={"normalization": "max_l2", "use_multiplier": True}),
            {"class": "TopKSAE", "top_k": 4, "normalization": "max_l2"},
        ),
        "jump": (JumpSAE(D_IN, N), {"class": "JumpSAE"}),
        "batchtopk": (BatchTopKSAE(D_IN, N, top_k=40), {"class": "BatchTopKSAE", "top_k": 40}),
        "archetypal": (RATopKSAE(D_IN, N, points, top_k=4), {"class": "RATopKSAE", "top_k": 4}),
        "tied": (TopKSAE(D_IN, N, top_k=4).tied(bias=True), {"class": "TopKSAE", "top_k": 4}),
    }
    for name, (sae, given) in cases.items():
        fill(sae)
        if name == "batchtopk":
            sae.train()
            sae(x())
            given["running_threshold"] = float(sae.running_threshold)
        place = out / f"{name}.pth"
        torch.save(sae.state_dict(), place)
        sae.eval()
        _, codes, x_hat = sae(x())
        keep(place, version("overcomplete"), codes, x_hat, given=given)


def make_dictionary_learning(out: Path) -> None:
    """dictionary_learning: every class of its loader, with the config that its trainer writes."""
    from importlib.metadata import version

    from dictionary_learning import utils
    from dictionary_learning.dictionary import AutoEncoder, AutoEncoderNew, GatedAutoEncoder, JumpReluAutoEncoder
    from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
    from dictionary_learning.trainers.top_k import AutoEncoderTopK

    cases = {
        "AutoEncoder": AutoEncoder(D_IN, N),
        "AutoEncoderNew": AutoEncoderNew(D_IN, N),
        "GatedAutoEncoder": GatedAutoEncoder(D_IN, N),
        "JumpReluAutoEncoder": JumpReluAutoEncoder(D_IN, N),
        "AutoEncoderTopK": AutoEncoderTopK(D_IN, N, k=4),
        "BatchTopKSAE": BatchTopKSAE(D_IN, N, k=4),
        "MatryoshkaBatchTopKSAE": MatryoshkaBatchTopKSAE(D_IN, N, k=4, group_sizes=[4, 12]),
    }
    for name, sae in cases.items():
        fill(sae)
        if "Batch" in name:
            sae.threshold.fill_(0.6)
        place = out / name
        place.mkdir(parents=True, exist_ok=True)
        torch.save(sae.state_dict(), place / "ae.pt")
        trainer = {"dict_class": name, "activation_dim": D_IN, "dict_size": N, "layer": 8, "lm_name": "some/vit"}
        if hasattr(sae, "k"):
            trainer["k"] = int(sae.k)
        (place / "config.json").write_text(json.dumps({"trainer": {**trainer, "submodule_name": None}}))
        loaded, _ = utils.load_dictionary(str(place), device="cpu")
        keep(place, version("dictionary-learning"), loaded.encode(x()), loaded(x()))


MAKERS = {
    "sae_lens": make_sae_lens,
    "sae_lens_5": make_sae_lens_5,
    "sparsify": make_sparsify,
    "saev": make_saev,
    "overcomplete": make_overcomplete,
    "dictionary_learning": make_dictionary_learning,
}


def check_sae_lens(place: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Load an export as SAELens does and compute."""
    from sae_lens import SAE

    sae = SAE.load_from_disk(place)
    return sae.encode(x()), sae(x())


def check_sparsify(place: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Load an export as sparsify does and compute."""
    from sparsify import SparseCoder

    sae = SparseCoder.load_from_disk(place)
    found = sae.encode(x())
    return torch.zeros(ROWS, sae.num_latents).scatter(1, found.top_indices, found.top_acts), sae(x()).sae_out


CHECKS = {"sae_lens": check_sae_lens, "sparsify": check_sparsify}


def check_exports(tool: str, folder: Path) -> None:
    """Compare what a tool computes from every export in `folder` with what saetool did; raises SystemExit."""
    for place in sorted(path for path in folder.iterdir() if path.is_dir()):
        codes, x_hat = CHECKS[tool](place)
        ours = load_file(folder / f"{place.name}.safetensors")
        for name, theirs in (("codes", codes), ("x_hat", x_hat)):
            error = float((theirs.detach() - ours[name]).abs().max() / ours[name].abs().max())
            if error > 1e-6:
                raise SystemExit(f"{tool} {place.name}: {name} differ by {error:.1e}")
        if not torch.equal(codes > 0, ours["codes"] > 0):
            raise SystemExit(f"{tool} {place.name}: other latents are active")
        print(f"{tool} opens {place.name} and computes the same")


def environment(tool: str, folder: Path) -> Path:
    """Return the interpreter of a tool's own environment, made where it is not there yet."""
    place = folder / tool
    python = place / "bin/python"
    if not python.exists():
        venv.create(place, with_pip=False)
        site = next((place / "lib").glob("python*/site-packages"))
        (site / "zz_base.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
        install = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps"]
        subprocess.run([*install, *PACKAGES[tool].replace(" ", "\n").split("\n")], check=True)
    return python


def main() -> None:
    """Make everything, or act as a worker inside one tool's environment."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--environments", type=Path, default=Path(tempfile.gettempdir()) / "saetool-tools")
    parser.add_argument("--only", nargs="*", default=list(MAKERS), choices=list(MAKERS))
    parser.add_argument("--worker", choices=list(MAKERS))
    parser.add_argument("--check", type=Path)
    given = parser.parse_args()
    os.environ["SPARSIFY_DISABLE_TRITON"] = "1"  # sparsify decodes with Triton, which finds no GPU here
    if given.worker and given.check:
        check_exports(given.worker, given.check)
    elif given.worker:
        torch.set_grad_enabled(False)
        MAKERS[given.worker](DATA / given.worker)
    else:
        for tool in given.only:
            python = environment(tool, given.environments)
            subprocess.run([python, __file__, "--worker", tool], check=True)
            if tool in CHECKS:
                with tempfile.TemporaryDirectory() as folder:
                    subprocess.run([sys.executable, HERE / "make_exports.py", tool, folder], check=True)
                    subprocess.run([python, __file__, "--worker", tool, "--check", folder], check=True)


if __name__ == "__main__":
    main()
