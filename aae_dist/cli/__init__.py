"""The command line: `aae-dist VERB ...`.

A verb is one function here, with its arguments, its help and its body. Each imports what it needs
when it runs, so that help and a wrong configuration cost no import of torch or Ray.
"""

from aae_dist.cli.main import main, report_error

__all__ = ["main", "report_error"]
