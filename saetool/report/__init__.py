"""The report: a static site that opens from a disk without a server or a network.

It reads artifacts and, for thumbnails, the image source; never a model.
"""

from typing import TYPE_CHECKING

from saetool.lazy import lazy_names
from saetool.report.settings import ReportSettings

if TYPE_CHECKING:
    from saetool.report.checking import check
    from saetool.report.overview import write_overview
    from saetool.report.stage import report_stage

__all__ = ["ReportSettings", "check", "report_stage", "write_overview"]

__getattr__ = lazy_names(__name__, {"check": "checking", "report_stage": "stage", "write_overview": "overview"})
