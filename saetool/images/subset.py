"""A sample of a source of one's own, which has no settings to say so."""

from saetool.artifacts import digest_json
from saetool.images.picture import Picture
from saetool.images.sampling import Sample
from saetool.images.source import ImageSource, Label


class Subset(ImageSource):
    """Some images of another source, in its order."""

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

    def times(self) -> str | None:
        ask = getattr(self._source, "times", None)
        return ask() if ask else None
