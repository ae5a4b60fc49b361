"""Are the settings of `auto` good ones? The study behind docs/settings.md: advice beside its neighbors, three stores.

    python scripts/study_settings.py --elpv runs/demo/activations [--photographs FOLDER] [--minutes 1] [--json FILE]

Stores: the demo's (whole blocks of the listing held out), photographs (a folder of folders, one a photograph, of crops;
default: crops of those that scikit-image and scikit-learn carry; whole photographs held out) and the pixels of
scikit-learn's digits. Every neighbor differs in one thing: width, learning rate, batch, or ReLU + L1 at the same L0.
The advice stands where its held-out FVU is within 5 % of the best of those that leave at most a fifth of their latents
silent; otherwise the exit code is 1. A minute a training, more or less.
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

import saetool
from saetool.activations import ActivationStore
from saetool.evaluation.baselines import baselines_of, fit_baselines
from saetool.evaluation.reconstruction import held_out_sums, numbers
from saetool.evaluation.settings import EvaluationSettings
from saetool.evaluation.subject import Subject
from saetool.training.advice import AutoAutoencoder, AutoTraining, advise
from saetool.training.concerns import MOST_SILENT

WITHIN = 1.05
CROPS, LEAST_SIDE, MOST_SIDE = 64, 96, 320
PHOTOGRAPHS = ["astronaut", "chelsea", "coffee", "rocket", "motorcycle_left", "retina", "hubble_deep_field", "ihc"]
PHOTOGRAPHS += ["brick", "grass", "gravel", "camera", "coins", "moon"]


def crop_photographs(folder):
    """Write 64 random square crops of each photograph into a folder of its own."""
    import skimage
    from sklearn.datasets import load_sample_images

    data = Path(skimage.__file__).parent / "data"
    pictures = {}
    for name in PHOTOGRAPHS:
        file = next(data.glob(f"{name}.*"))
        pictures[name] = Image.open(file).convert("RGB")
    samples = load_sample_images()
    pictures |= {Path(n).stem: Image.fromarray(p) for n, p in zip(samples.filenames, samples.images, strict=True)}
    rng = np.random.default_rng(0)
    for name, picture in pictures.items():
        (folder / name).mkdir(parents=True)
        width, height = picture.size
        for i in range(CROPS):
            side = int(rng.integers(LEAST_SIDE, min(width, height, MOST_SIDE) + 1))
            x, y = int(rng.integers(0, width - side + 1)), int(rng.integers(0, height - side + 1))
            picture.crop((x, y, x + side, y + side)).resize((224, 224)).save(folder / name / f"{i:02d}.png")


def stores(arguments, work):
    """Yield (name, store, group, share held out) of the three."""
    if arguments.elpv:
        yield "demo", Path(arguments.elpv), {"block": 60}, 0.2
    photographs = arguments.photographs or work / "photographs"
    if not arguments.photographs:
        crop_photographs(photographs)
    out = work / "photographs_store"
    saetool.cache("demo/vits14", photographs, 10, out, tokens="patches")
    yield "photographs", out, {"folder": 1}, 0.2
    out = work / "digits_store"
    saetool.cache("pixels/gray", "digits", 1, out, image_size=8, dtype="float32")
    yield "digits", out, None, 0.1


def neighbors(autoencoder, training):
    """Return {what is other: (autoencoder, training)} as mappings, the advice first."""
    a, t = autoencoder.model_dump(exclude_unset=True), training.model_dump(exclude_unset=True)
    a["activation"], a["dead"] = autoencoder.activation.model_dump(), autoencoder.dead.model_dump()
    k, x, lr, batch = a["activation"]["k"], a["expansion"], t["lr"], t["batch_size"]
    found = {"auto": (a, t), f"width × {2 * x}": (a | {"expansion": 2 * x}, t)}
    if x >= 4:
        found[f"width × {x // 4 or 1}"] = (a | {"expansion": x // 4 or 1}, t)
    found |= {f"lr {factor * lr:.2g}": (a, t | {"lr": factor * lr}) for factor in (1 / 3, 3)}
    found[f"batch {4 * batch:,}, lr {2 * lr:.2g}"] = (a, t | {"batch_size": 4 * batch, "lr": 2 * lr})
    found["lr constant"] = (a, t | {"schedule": "constant"})
    penalty = {"kind": "l1", "target_l0": k}
    found["ReLU + L1"] = (a | {"activation": {"kind": "relu"}, "dead": {"kind": "none"}, "penalty": penalty}, t)
    return found


def pca(store, model):
    """Return the FVU of PCA with as many components a token, on the model's held-out images."""
    subject = Subject.open(model, saetool.artifacts.Artifact.open(store), EvaluationSettings(), 0)
    k = round(model.content["final"]["l0"])
    fit = fit_baselines(subject.training_rows(65_536), k, subject.autoencoder.n_latents, 2, 0)
    (found, *_) = baselines_of(fit, k, subject.autoencoder.n_latents, 0)
    sums = held_out_sums(found.model, subject.batches(subject.measured), subject.measured_mean)
    return numbers(sums, 0, 0)["fvu"]["value"]


def study(name, store, group, share, minutes, work):
    """Train the advice and its neighbors on one store; return a row each, and whether the advice stands."""
    site = ActivationStore.open(store).site()
    rows = round(site.n_images * site.tokens * (1 - share))
    auto = AutoTraining(minutes=minutes, held_out=share)
    advice = advise(AutoAutoencoder(kind="auto"), auto, rows, site.d)
    print(f"\n{name}: {advice.because}", flush=True)
    found = []
    for what, (autoencoder, training) in neighbors(advice.autoencoder, advice.training).items():
        place = work / f"{name}_{len(found)}"
        model = saetool.train(store, autoencoder, training, place, group=group)
        final = model.content["final"]
        row = {"what": what, "fvu": final["fvu"], "l0": final["l0"], "silent": final["dead_share"]}
        row["firings"] = model.content["tokens"] * final["l0"] / model.content["n_latents"]
        found.append(row)
        line = "  {what:24s} FVU {fvu:.4f}  L0 {l0:5.1f}  silent {silent:6.1%}  {firings:9,.0f} firings a latent"
        print(line.format(**row), flush=True)
        if what == "auto":
            reference = pca(store, model)
            print(f"  {'PCA, as many a token':24s} FVU {reference:.4f}", flush=True)
    good = [row["fvu"] for row in found if row["silent"] <= MOST_SILENT]
    stands = found[0]["silent"] <= MOST_SILENT and found[0]["fvu"] <= WITHIN * min(good)
    print(f"  the advice {'stands' if stands else 'DOES NOT STAND'}: {found[0]['fvu'] / min(good):.3f} × the best")
    return {"because": advice.because, "pca": reference, "rows": found, "stands": stands}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--elpv", help="the demo's store of activations")
    parser.add_argument("--photographs", type=Path, help="a folder with a folder of crops a photograph")
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        found = {name: study(name, *rest, arguments.minutes, work) for name, *rest in stores(arguments, work)}
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1))
    raise SystemExit(0 if all(one["stands"] for one in found.values()) else 1)


if __name__ == "__main__":
    main()
