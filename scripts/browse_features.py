"""Look at latents and images from a terminal: prints a table and, with --sheet, writes a contact sheet.

python scripts/browse_features.py runs/demo/features --latent 12 345 --sheet latents.png
python scripts/browse_features.py runs/demo/features --label type=mono
python scripts/browse_features.py runs/demo/features --similar 12 --by coactivation
python scripts/browse_features.py runs/demo/features --image images/cell0001.png
"""

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from saetool.errors import RequestError
from saetool.features import Features
from saetool.features.reading import Rows
from saetool.features.sheet import Cell, Originals, cells_of, contact_sheet
from saetool.images import open_cached
from saetool.program import run_script


def main() -> None:
    """Answer one question about a features artifact."""
    given = _arguments()
    features = Features(given.features)
    if given.image is not None:
        image = int(given.image) if given.image.isdecimal() else given.image
        rows = features.firing(image, given.count)
        latents = rows.column("latent")
    elif given.label is not None:
        label, _, class_ = given.label.partition("=")
        rows = features.for_label(label, class_ or None, given.count)
        latents = rows.column("latent")
    elif given.similar is not None:
        rows = features.similar(given.similar, given.by, given.count)
        latents = [given.similar, *rows.column("latent")]
    else:
        latents = given.latent
        rows = Rows(features.latents.take(latents)) if _known(features, latents) else None
    print(rows)
    if given.latent:
        for latent in latents:
            print(f"\nlatent {latent}, strongest images:\n{features.top(latent, given.count)}")
    if given.sheet:
        pictures = _originals(features, given.root)
        if given.image is not None:
            sheet = _sheet_of_image(features, pictures, rows, features.row_of(image))
        else:
            sheet = _sheet(features, pictures, latents, given)
        try:
            sheet.save(given.sheet)
        except (OSError, ValueError) as error:  # no such folder, no such format
            raise RequestError(f"--sheet {given.sheet}: cannot be written: {error}") from None
        print(f"\n{given.sheet}: {sheet.width} × {sheet.height} pixels")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("features", help="a sealed features artifact")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--latent", type=int, nargs="+", help="show these latents' strongest images")
    what.add_argument("--label", metavar="COLUMN[=CLASS]", help="the latents most associated with a label")
    what.add_argument("--similar", type=int, metavar="LATENT", help="the latents most similar to one")
    what.add_argument("--image", metavar="ROW|PATH", help="the latents that fire on an image, and where")
    parser.add_argument(
        "--by", choices=["decoder", "coactivation"], default="decoder", help="what makes latents similar"
    )
    parser.add_argument("--count", type=_count, default=8, help="rows of the table, pictures in a row of the sheet")
    parser.add_argument(
        "--group", choices=["top", "interval", "random", "held_out"], default="top", help="pictures of the sheet"
    )
    parser.add_argument("--sheet", type=Path, metavar="FILE.png", help="write a contact sheet")
    parser.add_argument("--root", help="where the images are now, if they have moved")
    return parser.parse_args()


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number from 1 on, not {text}")
    return int(text)


def _known(features: Features, latents: Iterable[int]) -> bool:
    return all(features.latent(latent) for latent in latents)


def _originals(features: Features, root: str | None) -> Originals:
    source = open_cached(features.artifact.find_input("activations"), root)
    return Originals(features.images, source)


def _sheet(features: Features, pictures: Originals, latents: Sequence[int], given: argparse.Namespace):
    def caption(row: dict) -> str:
        return f"{row['value']:.3g}{' held out' if row['held_out'] else ''} #{row['image']}"

    cells = [cells_of(features, latent, given.count, given.group, pictures.read, caption) for latent in latents]
    rows = [(f"latent {latent}", found) for latent, found in zip(latents, cells, strict=True)]
    return contact_sheet(rows, features.geometry)


def _sheet_of_image(features: Features, pictures: Originals, rows: Rows, image: int):
    path, picture = pictures.paths[image], pictures.read(image)
    cells = [Cell(picture, path)]
    for row in rows:
        heat = np.zeros(features.grid, np.float32) if features.grid else None
        if heat is not None:
            heat.flat[row["patch"]] = 1
        cells.append(Cell(picture, f"latent {row['latent']}: {row['value']:.3g}", heat))
    return contact_sheet([(path, cells)], features.geometry)


if __name__ == "__main__":
    run_script(main)
