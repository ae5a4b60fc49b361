"""The `report:` section of a config."""

from pydantic import Field

from saetool.settings import Settings


class ReportSettings(Settings):
    """What the report shows and how large it may grow. The table always has every latent."""

    latents: list[int] | None = None
    """Latents that get a page; None gives all of them one."""
    max_images: int = Field(default=5_000, ge=0)
    """Images that get a page, those that are examples of a latent first."""
    max_mb: float = Field(default=500.0, gt=0)
    """Bound on the site in megabytes (10⁶ bytes); pages and thumbnails are left out, table rows never."""
    title: str | None = None
    """The heading; None makes one from the model and the data."""
