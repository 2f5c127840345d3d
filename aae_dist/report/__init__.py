"""The report of a sweep: one HTML file and a few pictures, made from the sweep's folder."""

from aae_dist.report.page import make_report, recommendation_of, write_report

__all__ = ["make_report", "recommendation_of", "write_report"]
