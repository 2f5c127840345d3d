"""A reporter for runs in a test's own process."""


class Silent:
    """Never asks for a stop or a checkpoint; keeps the lines of the run."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def report(self, metrics: object) -> None:
        pass

    def stop_requested(self) -> bool:
        return False

    def stopped_as(self) -> str:
        return "interrupted"

    def save_requested(self) -> bool:
        return False

    def line(self, text: str) -> None:
        self.lines.append(text)
