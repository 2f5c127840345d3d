"""A parser whose every mistake is one line: what, what was got, what to do."""

import argparse
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from aae_dist.config.loading.messages import did_you_mean
from aae_dist.config.redaction import redact

OVERRIDE = re.compile(r"--?(\w+(?:\.\w+)+)(?:=(.*))?", re.DOTALL)
"""An override written as an option: --train.steps=3."""


class OneLineParser(argparse.ArgumentParser):
    """Parser of the command line and, as sub-parsers take its class, of every verb."""

    def error(self, message: str) -> NoReturn:
        """Print one line that ends in where help is, and exit with code 2."""
        self.exit(2, redact(f"aae-dist: {message} (see {self.prog} --help)\n"))

    def parse_known_args(  # type: ignore[override]  # of two overloads the one that is used
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Return what is known and the rest: more items of a verb that takes any number of them.

        The parser of a verb knows what there is, so that it must be the one to complain.
        """
        given = list(sys.argv[1:] if args is None else args)
        found, rest = super().parse_known_args(given, namespace)
        if stray := next((item for item in rest if item.startswith("-")), None):
            self.error(self._stray_option(stray, given))
        if rest and not self._takes_items and self._subparsers is None:
            self.error(f"{' '.join(rest)} is more than {self.prog} takes")
        return found, rest

    @property
    def _takes_items(self) -> bool:
        return any(action.dest == "items" for action in self._actions)

    def _stray_option(self, item: str, given: Sequence[str]) -> str:
        """Return what is wrong with an option that there is not."""
        if self._takes_items and (found := OVERRIDE.fullmatch(item)):
            key, value = found.groups()
            after = given[given.index(item) + 1 :][:1] if item in given else []
            value = value if value is not None else "".join(after) or "VALUE"
            return f"{item}: an override has no dashes; write {key}={value}"
        name = item.partition("=")[0]
        return f"there is no option {name}{did_you_mean(name, self._option_string_actions)}"

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Raise ArgumentError for a value that is none of the choices."""
        if action.choices is None or value in action.choices:
            return
        choices = [str(choice) for choice in action.choices]
        advice = did_you_mean(value, choices) or f"; should be one of {', '.join(choices)}"
        raise argparse.ArgumentError(action, f"there is no {value!r}{advice}")
