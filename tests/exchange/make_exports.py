"""Write every autoencoder that a tool can hold, with what saetool computes from the rows: for make_data.py to compare.

python tests/exchange/make_exports.py TOOL DIR
"""

import json
import sys
import tempfile
from pathlib import Path

from exported import KINDS, random_model, sealed, structure
from make_data import x
from safetensors.torch import save_file

from saetool import export_autoencoder
from saetool.errors import RequestError
from saetool.training.heldout import reconstruct

RECORDED = Path(__file__).parent / "data/exports.json"
"""The structure of each export as it was when the tool opened it."""


def main() -> None:
    """Export to the tool named first, into the folder named second."""
    tool, folder = sys.argv[1], Path(sys.argv[2])
    recorded = json.loads(RECORDED.read_text()) if RECORDED.exists() else {}
    digests = recorded[tool] = {}
    for kind in KINDS:
        model = random_model(kind)
        with tempfile.TemporaryDirectory() as place:
            artifact = sealed(model, Path(place) / kind)
            try:
                export_autoencoder(artifact, folder / kind, tool)
            except RequestError as refusal:
                print(f"{tool}: {kind}: refused: {refusal}")
                continue
        codes, x_hat = reconstruct(model, x())
        tensors = {"codes": codes.dense().detach().contiguous(), "x_hat": x_hat.detach().contiguous()}
        save_file(tensors, folder / f"{kind}.safetensors")
        digests[kind] = structure(folder / kind)
    RECORDED.write_text(json.dumps(recorded, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
