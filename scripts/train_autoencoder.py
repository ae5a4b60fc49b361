"""Train one sparse autoencoder on a store of activations: `python scripts/train_autoencoder.py STORE OUT`."""

import argparse

from saetool.autoencoders.sparse_settings import L1Penalty, SparseSettings
from saetool.program import run_script
from saetool.training import TrainingSettings, train


def main() -> None:
    """Read the arguments, train, print the held-out numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", help="a sealed store of activations, made by cache_activations.py")
    parser.add_argument("out", help="where the autoencoder goes; begun work there is resumed")
    parser.add_argument("--expansion", type=float, default=32, help="latents per input dimension")
    parser.add_argument("--target-l0", type=float, default=45, help="active latents a row that the penalty steers to")
    parser.add_argument("--tokens", type=int, default=1_300_000, help="rows to train on")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--layer", help="which site of the store, where it holds several")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    layer = int(given.layer) if given.layer and given.layer.isdigit() else given.layer
    penalty = L1Penalty(kind="l1", target_l0=given.target_l0)
    autoencoder = SparseSettings(kind="sparse", expansion=given.expansion, penalty=penalty)
    training = TrainingSettings(tokens=given.tokens, lr=given.lr, layer=layer)
    final = train(given.store, autoencoder, training, given.out, seed=given.seed).content["final"]
    print(f"{given.out}: FVU {final['fvu']:.3f}, L0 {final['l0']:.1f}, dead {final['dead_share']:.1%}")


if __name__ == "__main__":
    run_script(main)
