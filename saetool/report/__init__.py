"""The report: a static site that opens from a disk without a server or a network.

It reads artifacts and, for thumbnails, the image source; never a model.
"""

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from saetool.lazy import face

if TYPE_CHECKING:
    from saetool.report.checking import check as check
    from saetool.report.overview import write_overview as write_overview
    from saetool.report.settings import ReportSettings as ReportSettings
    from saetool.report.stage import report_stage as report_stage

__all__, __getattr__, __dir__ = face(
    __name__,
    {
        "checking": ("check",),
        "overview": ("write_overview",),
        "settings": ("ReportSettings",),
        "stage": ("report_stage",),
    },
)


class _Room(ModuleType):
    """This package is also the call `saetool.report(…)`: a name can be only one thing, and both are wanted."""

    def __call__(self, *given: Any, **keywords: Any) -> Any:
        from saetool.report.stage import report

        return report(*given, **keywords)

    @property
    def __signature__(self) -> Any:
        """What notebooks show of the call."""
        import inspect

        from saetool.report.stage import report

        return inspect.signature(report)


sys.modules[__name__].__class__ = _Room
