"""Draw the lecture's figures: each a PNG and the numbers behind it in JSON.

    python scripts/figures.py --out figures
    python scripts/figures.py --out figures --only score
    python scripts/figures.py --out figures --only features --run runs/demo

Figures 1–8 train small models on digits, MNIST and toys (together about four minutes on one core); figure 9 shows
eight latents of a run of saetool. docs/lecture.md says which claim each figure shows and which test holds it.
"""

import argparse
import json
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import torch
from lecture import contractive, denoising, features, linear, nonlinear, score, sparsity, variational, vector_field

from saetool.errors import SaetoolError

FIGURES: dict[str, Callable] = {
    "linear": linear.draw,
    "nonlinear": nonlinear.draw,
    "sparsity": sparsity.draw,
    "denoising": denoising.draw,
    "vector_field": vector_field.draw,
    "score": score.draw,
    "contractive": contractive.draw,
    "variational": variational.draw,
}


def main() -> None:
    """Draw all figures, or the one asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="where the PNG and JSON files go")
    parser.add_argument("--only", choices=[*FIGURES, "features"], help="draw this one alone")
    parser.add_argument("--run", type=Path, help="a run's directory, for figure 9 (features)")
    arguments = parser.parse_args()
    if arguments.only == "features" and arguments.run is None:
        parser.error("--only features shows latents of a run: give --run DIR")
    figures = dict(FIGURES) if arguments.only != "features" else {}
    if arguments.run is not None:
        figures["features"] = lambda: features.draw(arguments.run)
    warnings.filterwarnings("ignore", category=FutureWarning)  # of torch about itself, as in saetool's command line
    torch.set_num_threads(1)  # these tensors are small: a second thread would mostly wait for the first
    torch.set_flush_denormal(True)  # where training has converged, moments decay into numbers that are slow to add
    mpl.use("Agg")
    mpl.rcParams.update({"font.size": 9, "axes.titlesize": 10, "axes.spines.top": False, "axes.spines.right": False})
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in [arguments.only] if arguments.only else figures:
        began, worked = time.monotonic(), time.process_time()
        figure, numbers = figures[name]()
        figure.savefig(arguments.out / f"{name}.png", dpi=130, bbox_inches="tight")
        text = json.dumps(numbers, indent=1, sort_keys=True, allow_nan=False)
        (arguments.out / f"{name}.json").write_text(text + "\n")
        seconds = f"{time.monotonic() - began:.0f} s ({time.process_time() - worked:.0f} s of CPU)"
        print(f"{name}: {arguments.out / name}.png and .json, {seconds}", flush=True)


if __name__ == "__main__":
    try:
        main()
    except SaetoolError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
