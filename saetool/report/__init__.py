"""The report: a static site that opens from a disk without a server or a network.

It reads artifacts and, for thumbnails, the image source; never a model.
"""

from saetool.report.settings import ReportSettings
from saetool.report.stage import report_stage

__all__ = ["ReportSettings", "report_stage"]
