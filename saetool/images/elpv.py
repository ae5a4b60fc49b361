"""`elpv`: 2,624 electroluminescence photographs of solar cells, from the wheel elpv-dataset.

S. Deitsch et al., "Automatic classification of defective photovoltaic module cells in electroluminescence images",
Solar Energy 185 (2019).
"""

from importlib.util import find_spec
from pathlib import Path

from saetool.errors import RequestError
from saetool.images.folder import FolderSource
from saetool.images.sampling import ALL, Sample
from saetool.images.source import Label, LabelColumn, digest_labels

ATTRIBUTION = (
    "ELPV dataset: C. Buerhop-Lutz, S. Deitsch, A. Maier, F. Gallwitz, S. Berger, B. Doll, J. Hauch, C. Camus, "
    "C. Brabec, CC BY-NC-SA 4.0, https://github.com/zae-bayern/elpv-dataset"
)


class ElpvSource(FolderSource):
    """300×300 gray photographs, each with the cell's type and how probable a defect is, as experts judged it."""

    attribution = ATTRIBUTION
    companions = frozenset({"labels.csv"})

    def __init__(self, root: Path | str | None = None, sample: Sample = ALL):
        folder = Path(root) if root else _installed()
        super().__init__(folder, sample)
        self.name = "elpv"
        self.label_columns = [
            LabelColumn("type", "category", ["mono", "poly"]),
            LabelColumn("defect", "category", ["sound", "defective"]),
            LabelColumn("defect_probability", "number"),
        ]
        self._judged = _read_labels(folder / "labels.csv")

    def labels_digest(self) -> str:
        return digest_labels({self.path(i): self._judged[self.path(i)] for i in range(len(self))})

    def labels(self, i: int) -> dict[str, Label]:
        """Return type, defect (probability above one half) and defect_probability (0, 1/3, 2/3 or 1)."""
        probability, kind = self._judged[self.path(i)]
        return {
            "type": kind,
            "defect": "defective" if probability > 0.5 else "sound",
            "defect_probability": probability,
        }


def _installed() -> Path:
    package = find_spec("elpv_dataset")
    if package is None or package.origin is None:
        raise RequestError("images.source: elpv needs the package elpv-dataset: pip install 'saetool[demo]'")
    return Path(package.origin).parent / "data"


def _read_labels(file: Path) -> dict[str, tuple[float, str]]:
    if not file.is_file():
        raise RequestError(f"images.source: {file} is missing; elpv needs its labels beside the images folder")
    rows = [line.split() for line in file.read_text().splitlines() if line.strip()]
    # The table has thirds with 16 digits; a label reads better as the nearest double.
    return {path: (round(float(probability) * 3) / 3, kind) for path, probability, kind in rows}
