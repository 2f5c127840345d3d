"""A worker process of a sweep on this machine: trains one trial after another.

The driver writes JSON lines to its standard input and reads JSON lines from its standard output;
what the training prints goes to standard error, a log. When the driver is gone, so that the input
ends, the process ends at once: its trial resumes from its newest checkpoint. SIGTERM lets the trial
save first.
"""

import json
import os
import queue
import sys
import threading
import traceback
from functools import partial
from typing import Any, TextIO

from aae_dist.config import RunConfig
from aae_dist.launch.ending import StopReason, StopSignals, StopToken, last_line
from aae_dist.launch.trial_session import Channel, Ended, Session, train_here

Message = dict[str, Any]


class Driver:
    """The driver's end of the pipes."""

    def __init__(self) -> None:
        # Standard output is the protocol's alone: libraries may print.
        self._answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        self._inbox: queue.Queue[Message] = queue.Queue()
        requests = os.fdopen(os.dup(0), encoding="utf-8")
        threading.Thread(target=self._read, args=(requests,), daemon=True).start()

    def ask(self) -> Message:
        return self._inbox.get()

    def tell(self, message: Message) -> None:
        self._answers.write(json.dumps(message) + "\n")
        self._answers.flush()

    def _read(self, requests: TextIO) -> None:
        for line in requests:
            if not line.endswith("\n"):
                break
            self._inbox.put(json.loads(line))
        os._exit(0)


def main() -> None:
    """Serve the driver until it closes the pipe or this process is asked to stop."""
    driver = Driver()
    with StopSignals() as stop:
        driver.tell({"ready": True})
        while not stop.requested:
            request = driver.ask()
            if "trial" in request:
                driver.tell(_trained(driver, request, stop))


def _trained(driver: Driver, request: Message, stop: StopToken) -> Message:
    """Train the trial of a request; return how it ended."""
    config = RunConfig.model_validate_json(request["config"])
    token = StopToken(parent=stop)
    channel = Channel(config, tuple(request["scores"]), token)
    train = partial(train_here, lambda: config, request["launch_id"], None, device_of=str)
    session = Session(train, channel, token)
    while not isinstance(event := session.next(), Ended):
        driver.tell({"metrics": event})
        if driver.ask().get("stop"):
            event = session.stop(StopReason.PRUNED)
            break
    return _message(event)


def _message(ended: Ended) -> Message:
    if ended.crash is not None:
        traceback.print_exception(ended.crash)
        return {"crash": last_line(ended.crash)}
    if ended.outcome is None:
        return {"mistake": ended.mistake}
    return {"state": ended.outcome.state, "metrics": ended.outcome.metrics}


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    # Threads of a training that is over must not keep the process.
    os._exit(0)
