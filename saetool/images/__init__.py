"""Where pictures come from: a folder, an installed package, a data set of any library, what a user registers."""

from typing import TYPE_CHECKING

from saetool.lazy import face

if TYPE_CHECKING:
    from saetool.images.opening import open_cached as open_cached, open_source as open_source
    from saetool.images.picture import Picture as Picture
    from saetool.images.registry import register_source as register_source
    from saetool.images.sampling import Sample as Sample
    from saetool.images.settings import ImageSettings as ImageSettings
    from saetool.images.source import ImageSource as ImageSource, LabelColumn as LabelColumn

__all__, __getattr__, __dir__ = face(
    __name__,
    {
        "opening": ("open_cached", "open_source"),
        "picture": ("Picture",),
        "registry": ("register_source",),
        "sampling": ("Sample",),
        "settings": ("ImageSettings",),
        "source": ("ImageSource", "LabelColumn"),
    },
)
