"""The `report:` section of a config."""

from pydantic import Field

from saetool.settings import Settings


class ReportSettings(Settings):
    """What the report shows and how large it may grow. The table always has every latent."""

    latents: list[int] | None = None
    """Latents that get a page; null gives all of them one."""
    max_images: int | None = Field(default=None, ge=0)
    """Images whose latents are shown patch by patch, examples of a latent first; null takes what `max_mb` holds. Every
    image has a page with its strongest latents."""
    max_mb: float = Field(default=500.0, gt=0)
    """Bound on the site in megabytes (10⁶ bytes): the pages of the least interesting latents, images' patches and
    thumbnails are left out, table rows never."""
    title: str | None = None
    """The heading; null makes one from the model and the data."""
