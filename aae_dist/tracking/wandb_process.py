"""The process that talks to Weights & Biases; the only file that imports wandb.

wandb hooks sys.exit, installs exit handlers that wait for the network, starts a service process and
takes seconds to import. In a process of its own none of that can stop or slow down training, and
it can be killed (its service process ends when it does). Run as a script, so it imports nothing of
aae_dist. Requests are JSON lines on standard input, the first of which opens the run and is
answered by one on standard output.
"""

import json
import os
from collections.abc import Iterator
from typing import Any, TextIO

EXIT_CODES = {"finished": 0, "pruned": 0, "interrupted": 255}
"""How W&B shows a run: finished, also when a sweep stopped it; killed (255); else failed."""


def main() -> None:
    """Serve one run until it is closed or the training process is gone."""
    requests, answers = _private_streams()
    run = _open(json.loads(requests.readline()), answers)
    run.define_metric("step", hidden=True)
    run.define_metric("*", step_metric="step")
    state = "failed"  # the state if the training process is killed
    for request in _parsed(requests):
        if "record" in request:
            run.log(request["record"])
        elif "picture" in request:
            _log_picture(run, request)
        elif "close" in request:
            state = request["state"]
            run.summary.update({**request["close"], "state": state})
    run.finish(exit_code=EXIT_CODES.get(state, 1))


def _private_streams() -> tuple[TextIO, TextIO]:
    """Take standard input and output for the protocol alone: wandb may print, or ask for a key."""
    requests = os.fdopen(os.dup(0), encoding="utf-8")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    return requests, answers


def _open(start: dict[str, Any], answers: TextIO) -> Any:
    try:
        run = _init(start)
    except Exception as error:  # wandb raises many kinds; none may matter to training
        _answer(answers, {"problem": (str(error).strip() or type(error).__name__).splitlines()[0]})
        # Exit handlers of wandb would wait for the network.
        os._exit(1)
    _answer(answers, {})
    return run


def _init(start: dict[str, Any]) -> Any:
    import wandb

    settings = wandb.Settings(
        console="off",
        disable_code=True,
        disable_git=True,
        disable_job_creation=True,
        silent=True,
        init_timeout=start["init_seconds"],
        finish_timeout=start["finish_seconds"],
        x_disable_machine_info=True,
    )
    keys = ("project", "entity", "group", "tags", "name", "id", "config", "dir", "mode")
    given = {key: start[key] for key in keys}
    return wandb.init(
        resume="allow" if start["mode"] == "online" else None, **given, settings=settings
    )


def _log_picture(run: Any, request: dict[str, Any]) -> None:
    import wandb

    image = wandb.Image(request["path"])
    run.log({f"pictures/{request['picture']}": image, "step": request["step"]})


def _parsed(requests: TextIO) -> Iterator[dict[str, Any]]:
    """Yield whole requests; a training process that was killed leaves half a line."""
    for line in requests:
        if line.endswith("\n"):
            yield json.loads(line)


def _answer(answers: TextIO, answer: dict[str, str]) -> None:
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
