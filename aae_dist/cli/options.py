"""What verbs share: help, arguments, options, and messages about mistakes."""

import os
import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from inspect import cleandoc
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from aae_dist.errors import ConfigError

if TYPE_CHECKING:
    from aae_dist.config.load import ConfigFile
    from aae_dist.inference.trained_run import TrainedRun

EXIT_CODES = """\
exit codes:
  0    done (a run that had already finished says so)
  1    an internal error in aae-dist, with a traceback; or workers failed more often than allowed,
       or their networks diverged from each other repeatedly
  2    something to correct in the configuration, the data, the storage or the cluster
  3    training diverged: gradients were not finite for too many consecutive updates
  4    stopped as requested, with a checkpoint saved: the same command resumes from it
  130  stopped from the keyboard; 128 + signal when terminated at once; 141 when standard output
       was closed
"""
OVERRIDE = re.compile(r"--?(\w+(?:\.\w+)+)(?:=(.*))?", re.DOTALL)
"""An override written as an option: --train.steps=3."""
FETCH_SECONDS = 30.0  # longest wait for a configuration in a bucket, with all retries


# Help


class RawHelp(click.Command):
    """A command whose help keeps the lines of its docstring and epilog, and groups options."""

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_usage(ctx.command_path, " ".join(self.collect_usage_pieces(ctx)), "usage: ")

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        pieces = [self.options_metavar or ""]
        for param in self.get_params(ctx):
            if isinstance(param, click.Argument):
                name = param.human_readable_name
                name = name if param.required else f"[{name}]"
                pieces.append(f"{name}..." if param.nargs == -1 else name)
        return pieces

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        _write_raw(formatter, cleandoc(self.help or ""))

    def format_arguments(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        found = [param for param in self.get_params(ctx) if isinstance(param, click.Argument)]
        if found:
            with formatter.section("arguments"):
                formatter.write_dl([argument.get_help_record(ctx) for argument in found])

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {"options": []}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record and isinstance(param, click.Option):
                groups.setdefault(getattr(param, "group", "options"), []).append(record)
        for title, records in groups.items():
            with formatter.section(title):
                formatter.write_dl(records)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        _write_raw(formatter, self.epilog)


class Verbs(RawHelp, click.Group):
    """A group whose verbs are listed in sections."""

    command_class = RawHelp

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._sections: dict[str, list[str]] = {}

    def add_section(self, title: str, verbs: Iterable[click.Command]) -> None:
        """Add verbs that are listed together."""
        for verb in verbs:
            self.add_command(verb)
            self._sections.setdefault(title, []).append(str(verb.name))

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return [*super().collect_usage_pieces(ctx), "VERB ..."]

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_options(ctx, formatter)
        listed = [name for names in self._sections.values() for name in names]
        rest = [name for name in self.commands if name not in listed]
        width = max(map(len, self.commands))
        for title, names in {**self._sections, "commands": rest}.items():
            if names:
                with formatter.section(title):
                    rows = [(n.ljust(width), self.commands[n].short_help or "") for n in names]
                    formatter.write_dl(rows)


class GroupedOption(click.Option):
    """An option that the help lists under a title of its own."""

    def __init__(self, *args: Any, group: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.group = group


def _write_raw(formatter: click.HelpFormatter, text: str | None) -> None:
    if text:
        formatter.write("\n" + text.strip("\n") + "\n")


# Types of values


class WholeNumber(click.ParamType[int, Any]):
    """A whole number within bounds."""

    name = "N"

    def __init__(self, least: int | None = None, most: int | None = None) -> None:
        self._least, self._most = least, most

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        wanted = "a whole number"
        wanted += "" if self._least is None else f" from {self._least}"
        wanted += "" if self._most is None else f" to {self._most}"
        try:
            number = int(value)
        except ValueError:
            self.fail(f"should be {wanted}, got {value!r}", param, ctx)
        if (self._least is not None and number < self._least) or (
            self._most is not None and number > self._most
        ):
            self.fail(f"should be {wanted}, got {value!r}", param, ctx)
        return number


class CheckpointName(click.ParamType[str, Any]):
    """One checkpoint of a run: the best, the newest or that of a step."""

    name = "best|newest|STEP"

    def convert(self, value: Any, param: Any, ctx: Any) -> str:
        text = str(value)
        if text in ("best", "newest") or (text.isdecimal() and int(text) > 0):
            return text
        advice = _nearest(text, ("best", "newest"))
        return self.fail(f"should be best, newest or a step, got {text!r}{advice}", param, ctx)


class Fraction(click.ParamType[float, Any]):
    """A part of a whole that is not all of it."""

    name = "X"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        try:
            number = float(value)
        except ValueError:
            number = -1.0
        if not 0 <= number < 1:
            self.fail(f"should be a number from 0 to below 1, got {value!r}", param, ctx)
        return number


class Choice(click.Choice[str]):
    """One of some words; a mistyped one is answered with the nearest."""

    def convert(self, value: Any, param: Any, ctx: Any) -> str:
        if value not in self.choices:
            advice = _nearest(str(value), self.choices)
            advice = advice or f"; should be one of {', '.join(self.choices)}"
            self.fail(f"there is no {value!r}{advice}", param, ctx)
        return str(value)


class Item(click.ParamType[str, Any]):
    """A file, a pattern or an override; shells complete files."""

    name = "item"

    def shell_complete(self, ctx: Any, param: Any, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(incomplete, type="file")]


# Arguments and options

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def verb(short_help: str, epilog: str) -> Callable[[Callable[..., int]], click.Command]:
    """Make a function a verb; its docstring is the help."""
    return click.command(cls=RawHelp, short_help=short_help, epilog=epilog)


def titled_option(group: str) -> Callable[..., Decorator]:
    """Return `click.option` for options that the help lists under a title of their own."""
    return partial(click.option, cls=GroupedOption, group=group)


def items_argument(required: bool = True) -> Decorator:
    """Add the files and overrides of a configuration."""
    return click.argument(
        "items",
        nargs=-1,
        required=required,
        type=Item(),
        metavar="FILE.yaml | key=value",
        help="YAML files in order, and overrides that win over all files",
    )


def data_argument(verb: Callable[..., Any]) -> Callable[..., Any]:
    """Add the shards that a verb reads, and overrides."""
    return click.argument(
        "items",
        nargs=-1,
        type=Item(),
        metavar="DATA | key=value",
        help="shards: patterns or folders, as for data.train (default: the run's validation "
        "shards); and overrides of data.*, evaluation.* and train.device, and where whole data "
        "sets are written of launch.*",
    )(verb)


run_argument = click.argument(
    "uri", metavar="RUN", type=Item(), help="a run's folder: a local path, s3://, gs:// or az://"
)
checkpoint_option = click.option(
    "--checkpoint",
    "--step",  # its name of before, when it took steps only
    "checkpoint",
    type=CheckpointName(),
    metavar="best|newest|STEP",
    default="newest",
    help="best: the one with the lowest train.best_metric",
)
folder_option = click.option(
    "--out", required=True, metavar="FOLDER", help="where to: a path, s3://, gs:// or az://"
)
seed_option = click.option(
    "--seed", type=WholeNumber(), default=0, help="the same seed draws the same images"
)
data_option = click.option(
    "--data", multiple=True, type=Item(), metavar="PATTERN", help="the same as DATA"
)
json_option = click.option("--json", "as_json", is_flag=True, help="print JSON, not a table")


# What verbs are given


def read_items(items: Sequence[str]) -> tuple[list["ConfigFile"], list[str]]:
    """Return (files, overrides): an override has `=` and names no file; addresses are read here."""
    from aae_dist.api.config import fetch

    files: list[ConfigFile] = []
    overrides = []
    for item in items:
        if "://" in item.split("=", 1)[0]:
            files.append(fetch(item))
        elif "=" not in item or os.path.isfile(item):  # Path raises for a long one
            files.append(Path(item))
        else:
            overrides.append(item)
    return files, overrides


def data_and_overrides(items: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return (absolute patterns of shards, overrides)."""
    from aae_dist.config.load import absolute_storage, split_items

    patterns, overrides = split_items(items)
    return [absolute_storage(pattern) for pattern in patterns], overrides


def open_run(
    uri: str, checkpoint: str, overrides: Sequence[str] = (), *, reads_data: bool = True
) -> "TrainedRun":
    """Load a run with the threads of its training, on the CPU unless `overrides` name a device.

    `reads_data`: whether the verb reads any, so that `data.*` may be overridden.
    """
    device = "cpu"
    for item in overrides:
        if item.startswith("train.device="):
            device = item.removeprefix("train.device=")
        elif not (reads_data and item.startswith(("data.", "evaluation."))):
            allowed = "data.*, evaluation.* and train.device" if reads_data else "train.device"
            raise ConfigError(
                f"{item}: here only {allowed} may be overridden; launch.* is for encode, and for "
                "reconstruct with a folder as --out"
            )
    import torch

    import aae_dist
    from aae_dist.config.load import absolute_storage, with_overrides
    from aae_dist.distributed.world import from_environment

    run = aae_dist.load_run(absolute_storage(uri), from_environment(device).device, checkpoint)
    run.config = with_overrides(run.config, overrides)
    # As many as in training: matrix products round differently with another number of threads.
    torch.set_num_threads(run.config.launch.threads)
    return run


# Mistakes


def explain(error: click.UsageError, argv: Sequence[str]) -> str:
    """Return one line: what is wrong, what to do, and where the help is."""
    where = error.ctx.command_path if error.ctx else "aae-dist"
    return f"{_mistake(error, argv)} (see {where} --help)"


def _mistake(error: click.UsageError, argv: Sequence[str]) -> str:
    if isinstance(error, click.NoSuchOption):
        return _stray_override(error, argv) or (
            f"there is no option {error.option_name}{_did_you_mean(error.possibilities)}"
        )
    if isinstance(error, click.NoSuchCommand):
        known = list(error.ctx.command.commands) if error.ctx else []  # type: ignore[attr-defined]
        advice = _did_you_mean(error.possibilities) or f"; should be one of {', '.join(known)}"
        return f"there is no {error.command_name!r}{advice}"
    if isinstance(error, click.MissingParameter) and error.param is not None:
        return f"{_name(error.param)} is missing"
    if isinstance(error, click.BadParameter) and error.param is not None:
        return f"{_name(error.param)}: {error.message}"
    text = error.format_message().rstrip(".")
    return text[:1].lower() + text[1:]


def _stray_override(error: click.NoSuchOption, argv: Sequence[str]) -> str | None:
    """Return advice for an override that was written as an option."""
    takes_items = error.ctx and any(param.name == "items" for param in error.ctx.command.params)
    for place, item in enumerate(argv if takes_items else ()):
        if item.startswith(error.option_name) and (found := OVERRIDE.fullmatch(item)):
            key, value = found.groups()
            value = value if value is not None else "".join(argv[place + 1 :][:1]) or "VALUE"
            return f"{item}: an override has no dashes; write {key}={value}"
    return None


def _name(param: click.Parameter) -> str:
    return param.human_readable_name if isinstance(param, click.Argument) else param.opts[-1]


def _did_you_mean(possibilities: Sequence[str] | None) -> str:
    return f"; did you mean {possibilities[0]}?" if possibilities else ""


def _nearest(word: str, known: Sequence[str]) -> str:
    from difflib import get_close_matches

    return _did_you_mean(get_close_matches(word, known, 1))
