"""Which images of a listing are taken: an even sample by the seed, or the first ones, or all."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from saetool.artifacts import digest_json
from saetool.images.picture import Picture
from saetool.images.source import ImageSource, Label
from saetool.seeding import derive


@dataclass(frozen=True)
class Sample:
    """`limit` images, as many of each class as can be, evenly over each class's part of the listing; or the `first`.

    Of every stretch of a class's images one is drawn by the seed, so that no end of the listing is favored.
    """

    limit: int | None = None
    first: int | None = None
    seed: int = 0

    def take(self, classes: Sequence[Hashable]) -> list[int]:
        """Return the places that are taken, ascending, of a listing whose images are of these classes."""
        if self.first is not None:
            return list(range(min(self.first, len(classes))))
        if self.limit is None or self.limit >= len(classes):
            return list(range(len(classes)))
        places: dict[Hashable, list[int]] = {}
        for place, name in enumerate(classes):
            places.setdefault(name, []).append(place)
        shares = _shares([len(members) for members in places.values()], self.limit, self.seed)
        chosen = [
            members[at]
            for (name, members), share in zip(places.items(), shares, strict=True)
            for at in _evenly(len(members), share, self.seed, name)
        ]
        return sorted(chosen)


ALL = Sample()


def _shares(sizes: Sequence[int], limit: int, seed: int) -> list[int]:
    """Return how many to take of each class: equally many while it has them; the seed decides on the rest."""
    each = 0
    while sum(min(size, each + 1) for size in sizes) <= limit:
        each += 1
    shares = [min(size, each) for size in sizes]
    larger = [number for number, size in enumerate(sizes) if size > each]
    for at in _evenly(len(larger), limit - sum(shares), seed, "classes"):
        shares[larger[at]] += 1
    return shares


def _evenly(n: int, count: int, seed: int, *names: object) -> list[int]:
    """Return `count` of `n` places, one of each of as many equal stretches."""
    bounds = [part * n // count for part in range(count + 1)] if count else []
    return [
        start + derive(seed, "sample of images", *names, part) % (stop - start)
        for part, (start, stop) in enumerate(pairwise(bounds))
    ]


class Subset(ImageSource):
    """Some images of another source, in its order: of a source of one's own, which has no settings to say so."""

    def __init__(self, source: ImageSource, sample: Sample):
        self._source = source
        self._chosen = sample.take([None] * len(source))
        self.name, self.root = source.name, source.root
        self.label_columns, self.attribution = source.label_columns, source.attribution
        self.sequential, self.forkable = source.sequential, getattr(source, "forkable", False)
        self.in_memory = getattr(source, "in_memory", False)

    def __len__(self) -> int:
        return len(self._chosen)

    def path(self, i: int) -> str:
        return self._source.path(self._chosen[i])

    def size_hint(self, i: int) -> int:
        return self._source.size_hint(self._chosen[i])

    def labels(self, i: int) -> dict[str, Label]:
        return self._source.labels(self._chosen[i])

    def read(self, i: int) -> Picture:
        return self._source.read(self._chosen[i])

    def listing(self) -> str:
        """Return a digest over the source's listing and which of it is taken."""
        return digest_json([self._source.listing(), self._chosen])

    def digest(self, i: int) -> str:
        return self._source.digest(self._chosen[i])

    def labels_digest(self) -> str | None:
        ask = getattr(self._source, "labels_digest", None)
        return ask() if ask else None

    def times(self) -> str | None:
        ask = getattr(self._source, "times", None)
        return ask() if ask else None
