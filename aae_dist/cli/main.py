"""All verbs, exit codes, and one clear message per error."""

import os
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import click
from click.shell_completion import shell_complete

from aae_dist.cli import data, images, inspect, scoring, share, train
from aae_dist.cli.options import EXIT_CODES, Verbs, explain
from aae_dist.errors import AaeDistError, ConfigError
from aae_dist.version import __version__

COMPLETION = "_AAE_DIST_COMPLETE"  # variable with which a shell asks for completions

HELP = {"-h", "--help", "--version"}
SECTIONS = {
    "train": (train.train, train.tune),
    "prepare data": (data.data,),
    "use clusters": (train.submit, train.doctor),
    "use a trained run": (
        images.encode,
        inspect.evaluate,
        scoring.fit_sampler,
        images.interpolate,
        images.reconstruct,
        images.sample,
        scoring.score,
    ),
    "share a trained run": (share.export, share.push, share.pull),
    "compare runs": (inspect.runs, inspect.report),
}

COMPLETION_HELP = f"""
shell completion, in the shell's start-up file:
  eval "$({COMPLETION}=bash_source aae-dist)"        (zsh_source, fish_source)
"""


@click.group(
    cls=Verbs,
    epilog=EXIT_CODES + COMPLETION_HELP,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "max_content_width": 100,
        "show_default": True,
    },
)
@click.version_option(__version__, message="%(prog)s %(version)s")
def cli() -> None:
    """Distributed training of adversarial autoencoders on sharded image data."""


for title, verbs in SECTIONS.items():
    cli.add_section(title, verbs)  # type: ignore[attr-defined]  # the decorator tells Command


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; an error becomes one message on stderr."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if instruction := os.environ.get(COMPLETION):
            return shell_complete(cli, {}, "aae-dist", COMPLETION, instruction)
        _prepare(arguments)
        # Not `cli.main`, which turns Ctrl-C and a closed pipe into exit codes of its own.
        with cli.make_context("aae-dist", arguments) as context:
            code: int = cli.invoke(context) or 0
        sys.stdout.flush()
    except Exception as error:
        return report_error(error, arguments)
    except KeyboardInterrupt:
        _complain("stopped from the keyboard")
        return 130
    return code


def _prepare(arguments: Sequence[str]) -> None:
    if not HELP & set(arguments):  # help costs no import of the configuration
        from aae_dist.utils.text import log_redacted, strip_environment

        strip_environment()
        log_redacted()
    try:
        here = os.getcwd()
    except FileNotFoundError:
        raise ConfigError("the working directory was removed; cd to one that exists") from None
    if here not in sys.path:  # priors and networks of the user's own are found there
        sys.path.append(here)


def report_error(error: Exception, arguments: Sequence[str] = ()) -> int:
    """Print an error as one message on stderr and return the exit code of its class."""
    match error:
        case click.exceptions.Exit():
            return error.exit_code
        case click.exceptions.NoArgsIsHelpError():
            print(error.message, file=sys.stderr)
            return 2
        case click.UsageError():
            _complain(explain(error, arguments))
            return 2
        case AaeDistError():
            _complain(str(error))
            return error.exit_code
        case BrokenPipeError():
            # Standard output was closed (`| head`); keep Python from reporting that at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141
        case OSError():
            from aae_dist.storage.local import explain_system_error

            if message := explain_system_error(error):
                _complain(message)
                return 2
    if message := _explain_lack_of_memory(error):
        _complain(message)
        return 2
    _complain(
        "this is an internal error in aae-dist; please report it",
        "".join(traceback.format_exception(error)),
    )
    return 1


# torch has no class of its own for the memory of a CPU.
_NO_MEMORY = re.compile(r"can't allocate memory|size calculation overflowed|bad_alloc")
_ASKED = re.compile(r"[Aa]llocate ([\d.]+) ?(bytes|[KMGTPE]iB)")


def _explain_lack_of_memory(error: Exception) -> str | None:
    """Return an allocation that failed as one line, None for any other error."""
    names = {cls.__name__ for cls in type(error).__mro__}
    if not names & {"MemoryError", "OutOfMemoryError"} and not _NO_MEMORY.search(str(error)):
        return None
    asked = _ASKED.search(str(error))
    size = f": {asked[1]} {asked[2]} were asked for" if asked else ""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "aae_dist" in frame.filename]
    where = f" ({Path(ours[-1].filename).name}, line {ours[-1].lineno})" if ours else ""
    return (
        f"not enough memory{size}{where}. Take smaller networks or images (model.*, "
        "data.image_size), fewer samples at once (train.global_batch_size, "
        "train.micro_batch_size), or a machine with more."
    )


def _complain(message: str, before: str = "") -> None:
    from aae_dist.utils.text import redact

    print(redact(f"{before}aae-dist: {message}"), file=sys.stderr)
