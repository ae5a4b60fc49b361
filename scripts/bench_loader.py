"""How fast the shuffled loader is, beside one plain random gather of the same rows in memory.

    python scripts/bench_loader.py [--quick] [--json FILE]

The store (d = 384, bf16, 256 rows an image) is ten times larger than the loader's pool and read from the page cache.
Both are timed in turns, the best turn counts: other work on the machine then meets both.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from saetool.activations import CacheSettings, SiteStore, StoreStream, write_store

D, TOKENS, BATCH, POOL_ROWS = 384, 256, 2048, 65536
TURNS = 5


def main() -> None:
    """Make a store, time gather and loader, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a store of 655,360 rows (default: 2,621,440)")
    parser.add_argument("--json", type=Path, help="write the figures there")
    arguments = parser.parse_args()
    images = (10 if arguments.quick else 40) * POOL_ROWS // TOKENS
    generator = torch.Generator().manual_seed(0)
    tokens = torch.empty(images, TOKENS, D, dtype=torch.bfloat16).normal_(generator=generator)
    label_rows(tokens)
    with tempfile.TemporaryDirectory() as folder:
        settings = CacheSettings(dtype="bfloat16", batch_size=32)
        site = write_store(Path(folder) / "store", tokens, settings=settings).site()
        rows = tokens.view(-1, D)
        figures = measure(site, rows)
    figures |= {"rows": len(rows), "d": D, "batch": BATCH, "pool_rows": POOL_ROWS, "threads": torch.get_num_threads()}
    for name, value in figures.items():
        print(f"{name}: {value:,.4g}" if isinstance(value, float) else f"{name}: {value:,}")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


def measure(site: SiteStore, rows: Tensor) -> dict[str, float]:
    """Return rows a second of both, their ratio, and how often neighboring rows of a batch come from one image."""
    order = torch.randperm(len(rows))
    stream = StoreStream(site, BATCH, POOL_ROWS, seed=0)
    batches = stream.batches()
    n_batches = len(rows) // BATCH
    next(batches)  # the first turn would otherwise pay for starting threads and pools
    gather, loader = 0.0, 0.0
    for _ in range(TURNS):
        gather = max(gather, rate(torch.index_select(rows, 0, chosen) for chosen in order.split(BATCH)))
        loader = max(loader, rate(islice(batches, n_batches)))
    neighbors = same_image_share(islice(batches, n_batches))
    return {
        "rows_per_second": loader,
        "gigabytes_per_second": loader * D * 2 / 1e9,
        "gather_rows_per_second": gather,
        "loader_vs_gather": loader / gather,
        "neighbors_from_one_image": neighbors,
    }


def rate(batches: Iterator[Tensor]) -> float:
    """Return the rows a second at which an iterator gives batches."""
    start, count = time.perf_counter(), 0
    for batch in batches:
        count += len(batch)
    return count / (time.perf_counter() - start)


def label_rows(tokens: Tensor) -> None:
    """Write each image's number into the first two values of its rows, in numbers that bf16 holds exactly."""
    numbers = torch.arange(len(tokens))
    tokens[:, :, 0] = (numbers % 256)[:, None].to(tokens.dtype)
    tokens[:, :, 1] = (numbers // 256)[:, None].to(tokens.dtype)


def same_image_share(batches: Iterator[Tensor]) -> float:
    """Return the share of neighboring rows of a batch that come from one image."""
    shares = []
    for batch in batches:
        image = batch[:, 0].float() + 256 * batch[:, 1].float()
        shares.append((image[1:] == image[:-1]).float().mean())
    return float(torch.stack(shares).mean())


if __name__ == "__main__":
    main()
