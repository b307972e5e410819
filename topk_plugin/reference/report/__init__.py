"""`topk report DIR [DIR...]`: tables and figures of runs' folders, beside the paper's numbers.

Which functions make them from plain numbers is in ``statistics.py``, ``claims.py`` and the two
modules of figures.
"""

from topk_plugin.reference.report.blocks import Drawing, Table
from topk_plugin.reference.report.folder import Run, read_run
from topk_plugin.reference.report.page import report

__all__ = ["Drawing", "Run", "Table", "read_run", "report"]
