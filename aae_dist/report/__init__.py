"""The report of a sweep: one HTML file and a few pictures, from what lies in its folder."""

from aae_dist.report.write import make_report, write_report

__all__ = ["make_report", "write_report"]
