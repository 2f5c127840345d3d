"""Lines for a terminal or a job log."""

from aae_dist.config.redaction import redact


def echo(line: str) -> None:
    """Print one line at once, also into a pipe, without secrets."""
    print(redact(line), flush=True)
