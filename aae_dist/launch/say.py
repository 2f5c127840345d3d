"""Lines for a terminal or a job log."""


def say(line: str) -> None:
    """Print one line at once, also into a pipe."""
    print(line, flush=True)
