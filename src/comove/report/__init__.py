"""The report that people read: one HTML file that opens from disk. It reads results and computes nothing."""

from comove.report.evidence import Evidence, Suspects
from comove.report.provenance import Provenance
from comove.report.saved_results import read_brittleness, read_curves, read_lds, read_suspects, read_texts
from comove.report.write import Origin, ReportSize, write_report

__all__ = [
    "Evidence",
    "Origin",
    "Provenance",
    "ReportSize",
    "Suspects",
    "read_brittleness",
    "read_curves",
    "read_lds",
    "read_suspects",
    "read_texts",
    "write_report",
]
