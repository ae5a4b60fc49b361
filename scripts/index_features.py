"""Index what each latent of an autoencoder responds to: `python scripts/index_features.py AUTOENCODER STORE OUT`."""

import argparse

from saetool.features import Features, IndexSettings, index
from saetool.program import run_script


def main() -> None:
    """Read the arguments, index, print what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("autoencoder", help="a sealed autoencoder, made by train_autoencoder.py")
    parser.add_argument(
        "store", help="a sealed store of activations at its site: the one it was trained on, or another"
    )
    parser.add_argument("out", help="where the features go; begun work there is resumed")
    parser.add_argument("--top", type=int, default=16, help="strongest images kept for each latent")
    parser.add_argument("--top-by", choices=["max", "mean"], default="max", help="strongest by maximum or mean patch")
    parser.add_argument("--intervals", type=int, default=4, help="equal parts of (0, max] that examples are drawn from")
    given = parser.parse_args()
    settings = IndexSettings(top=given.top, top_by=given.top_by, intervals=given.intervals)
    print(Features(index(given.autoencoder, given.store, given.out, settings)))


if __name__ == "__main__":
    run_script(main)
