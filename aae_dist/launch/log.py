"""Lines for a terminal or a job log."""

from aae_dist.config.redaction import redact


def say(line: str) -> None:
    """Print one line at once, also into a pipe, without secrets."""
    print(redact(line), flush=True)
