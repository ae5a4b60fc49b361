"""The `cache` section of a config."""

from typing import Literal

from pydantic import Field

from saetool.settings import Settings


class CacheSettings(Settings):
    """How activations are stored. All three numbers belong to the result: another batch size is another store."""

    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """The stored type; the forward pass has its own (backbone.precision)."""
    shard_mb: float = Field(default=64, gt=0)
    """Size of a shard in MiB, about: shards hold whole slices, at least one."""
    batch_size: int = Field(default=32, ge=1)
    """Images in a slice: the forward batch, and the block that later stages read, shuffle and resume by."""
