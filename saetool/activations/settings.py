"""The `cache` section of a config."""

from typing import Any, Literal

from pydantic import Field

from saetool.settings import Settings


class CacheSettings(Settings):
    """How activations are stored. All of it belongs to the result: another batch size is another store."""

    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """The stored type; the forward pass has its own (backbone.precision)."""
    shard_mb: float = Field(default=64, gt=0)
    """Size of a shard in MiB, about: shards hold whole slices, at least one."""
    batch_size: int = Field(default=32, ge=1)
    """Images in a slice: the forward batch, and the block that later stages read, shuffle and resume by."""
    embedding: int | str | None = None
    """A layer (or module path) whose mean token is stored beside the sites: one vector an image, by which the index
    says how alike a latent's images are. Free where the forward pass goes as deep anyway."""

    thumbnails: bool = False
    """Keep a small picture of every image beside the shards, made while it is decoded anyway (some 5 kB and 5 ms
    each): reports then need no originals."""

    def content(self) -> dict[str, Any]:
        """Return what determines the store, as JSON types."""
        return self.model_dump(mode="json", exclude_none=True, exclude=None if self.thumbnails else {"thumbnails"})
