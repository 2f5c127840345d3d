"""What is submitted: a run or sweep; and its job on a running Ray cluster, through the jobs API."""

import asyncio
import contextlib
import logging
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aae_dist.config import RunConfig, dump_yaml, load, load_config, merge, schema, yaml
from aae_dist.errors import ConfigError, LaunchError
from aae_dist.sweeps.plan import SweepPlan, load_sweep
from aae_dist.utils.text import echo

LOCAL = "launch.kind=local trains on one machine; drop it (the default is ray)"
STOP_WAIT_SECONDS = 60
"""How long Ray lets a stopped job save its checkpoint; its own default is 3 s."""
CONFIG_FILE = "aae_dist-config.yaml"
POLL_SECONDS = 1.0
LOST_SECONDS = 60.0
"""How long a cluster may be silent while its job is followed: a port-forward may restart."""
SAVED = "with a checkpoint"  # part of the entrypoint's last line when it was stopped and had saved
NOT_SENT = (".git", ".venv", ".env", "__pycache__", "runs", "*.pyc")


@dataclass(frozen=True)
class Work:
    """A run or a sweep that is submitted."""

    verb: str  # train or tune
    name: str
    storage: str
    config: RunConfig
    """The run's; of a sweep that of its first trial, whose resources all trials have."""
    text: str  # the whole configuration, as YAML

    @property
    def address(self) -> str:
        return f"{self.storage}/{self.name}"


def read_work(files: Sequence[load.ConfigFile], overrides: Sequence[str]) -> Work:
    """Return the run or sweep that files and overrides describe; notes go to stderr."""
    layers, _ = load.read_layers(files, overrides)
    if any(load.SWEEP in layer for layer in layers):
        return _sweep(load_sweep(files, overrides))
    loaded = load_config(files, overrides)
    _print_notes(loaded.notes)
    config = loaded.config
    return Work("train", config.run.name, config.run.storage, config, dump_yaml(config))


def _sweep(plan: SweepPlan) -> Work:
    _print_notes(plan.notes)
    base = merge.Merge(RunConfig).run(deepcopy(list(plan.layers)))
    load.make_absolute(base)
    whole = schema.plain(base)
    whole.setdefault("run", {})["storage"] = plan.storage
    whole[load.SWEEP] = plan.sweep.model_dump(mode="json")
    return Work("tune", plan.sweep.name, plan.storage, plan.configs[0], yaml.dump(whole))


def _print_notes(notes: Sequence[str]) -> None:
    for note in notes:
        print(f"note: {note}", file=sys.stderr)


def local_paths(config: RunConfig) -> Iterator[tuple[str, str]]:
    """Yield (key, path) for all that lies on a machine and not in a bucket."""
    for keys in load.PATHS:
        value: Any = config
        for key in keys:
            value = getattr(value, key, None)
        for path in [value] if value is None or isinstance(value, str) else value:
            if path and "://" not in path:
                yield ".".join(keys), path


def follow_or_stop(
    follow: Callable[[], int], stop: Callable[[], None], how: str, stop_on_interrupt: bool
) -> int:
    """Follow a job and return its exit code; Ctrl-C leaves it alone, or stops it.

    `stop` asks the job to save a checkpoint and end; `how` says what continues after Ctrl-C, and
    how to stop that.
    """
    try:
        return follow()
    except KeyboardInterrupt:
        if not stop_on_interrupt:
            print(f"\nno longer following; {how}")
            return 130
    print("\nstopping: the job saves a checkpoint first; Ctrl-C again stops following", flush=True)
    stop()
    return follow()


def check_address(address: str) -> None:
    """Raise LaunchError unless this is the address of a dashboard."""
    if not address.startswith(("http://", "https://")):
        raise LaunchError(f"--address {address}: give the dashboard's address, http://HOST:8265")


def entrypoint(verb: str) -> str:
    """Return the command that the cluster's head runs.

    Without a shell of its own, whose end would leave the driver to a process that does not reap:
    Ray would wait for that zombie until the time to stop is up.
    """
    return f"exec aae-dist {verb} {CONFIG_FILE}"


def submit(
    work: Work,
    address: str,
    env: Mapping[str, str],
    folder: Path | None = None,
    wait: bool = True,
    stop_on_interrupt: bool = False,
    doctor: bool = False,
) -> int:
    """Start a job on a running Ray cluster, follow its log to the end, return its exit code.

    `env` are more variables for the job, and `folder` holds files of the user's own, such as a
    prior, for its working directory. With `doctor` it checks the cluster and trains nothing.
    """
    for key, path in local_paths(work.config):
        print(f"note: {key}={path} means a folder of the cluster's nodes, not of this machine")
    jobs, verb = Jobs(address), "doctor" if doctor else work.verb
    job = jobs.submit(verb, work.name, work.text, env, folder)
    print(f"submitted {job} to {address}", flush=True)
    if not wait:
        print(f"log: aae-dist submit --follow {job} --address {address}")
        return 0
    return _follow(jobs, job, stop_on_interrupt)


def follow(job: str, address: str, stop: bool = False, stop_on_interrupt: bool = False) -> int:
    """Follow a job that was submitted before, or stop it first; return its exit code."""
    jobs = Jobs(address)
    if stop:
        jobs.stop(job)
    return _follow(jobs, job, stop_on_interrupt)


def _follow(jobs: "Jobs", job: str, stop_on_interrupt: bool) -> int:
    log = Log()
    return follow_or_stop(
        lambda: jobs.follow(job, log),
        lambda: jobs.stop(job),
        f"{job} continues. To stop it: aae-dist submit --stop {job} --address {jobs.address}",
        stop_on_interrupt,
    )


def check(work: Work) -> None:
    """Raise ConfigError for what cannot run on a Ray cluster; none is asked."""
    if work.config.launch.kind == "local":
        raise ConfigError(LOCAL)


class Jobs:
    """The jobs API at one address, such as http://localhost:8265."""

    def __init__(self, address: str) -> None:
        from ray.job_submission import JobSubmissionClient

        check_address(address)
        self.address = address
        # Uploads are logged at the level INFO, between the lines of the job.
        logging.getLogger("ray").setLevel(logging.WARNING)
        with api_errors(address):
            self._client: Any = JobSubmissionClient(address)

    def submit(
        self, verb: str, name: str, config: str, env: Mapping[str, str], folder: Path | None
    ) -> str:
        """Start `aae-dist VERB` on the cluster's head; return the job's id.

        The configuration is sent as a file. The dashboard shows the variables `env`.
        """
        job = f"{name}-{secrets.token_hex(3)}"
        variables = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_SECONDS), **env}
        with tempfile.TemporaryDirectory(prefix="aae_dist-") as temporary:
            sent = Path(temporary) / "job"
            if folder is None:
                sent.mkdir()
            else:
                _copy(folder, sent)
            (sent / CONFIG_FILE).write_text(config)
            place = {"working_dir": str(sent), "env_vars": variables}
            with api_errors(self.address):
                return str(self._client.submit_job(
                    entrypoint=entrypoint(verb), submission_id=job, runtime_env=place))  # fmt: skip

    def run_nothing(self, seconds: float) -> str:
        """Run a job that ends at once, and delete its record; return its state, '' if it lasts."""
        with api_errors(self.address):
            job = self._client.submit_job(entrypoint="exec true")
            until = time.monotonic() + seconds
            while not (status := self._client.get_job_status(job)).is_terminal():
                if time.monotonic() > until:
                    self._client.stop_job(job)
                    return ""
                time.sleep(0.5)
            self._client.delete_job(job)
        return str(status)

    def stop(self, job: str) -> None:
        with api_errors(self.address):
            self._client.stop_job(job)

    def follow(self, job: str, log: "Log") -> int:
        """Print the job's log until it ends; return its exit code.

        LaunchError when the cluster was silent for `LOST_SECONDS`. After Ctrl-C another call
        continues.
        """
        from aiohttp import ClientError

        silent_since: float | None = None
        while True:
            try:
                asyncio.run(self._print(job, log))
                info = self._client.get_job_info(job)
                silent_since = None
                if info.status.is_terminal():
                    return exit_code(str(info.status), info.driver_exit_code, log.saved)
            except (OSError, RuntimeError, ValueError, ClientError) as error:
                now = time.monotonic()
                silent_since = silent_since or now
                if now - silent_since > LOST_SECONDS:
                    raise LaunchError(
                        f"no answer from {self.address} for {LOST_SECONDS:.0f} s ({error}); job "
                        f"{job} may continue: `ray job logs -f {job}`"
                    ) from None
            time.sleep(POLL_SECONDS)

    async def _print(self, job: str, log: "Log") -> None:
        log.rewind()
        parts: AsyncIterator[str] = self._client.tail_job_logs(job)
        async for part in parts:
            log.take(part)


class Log:
    """The log of a job, printed once; each tail of it starts at the beginning."""

    def __init__(self) -> None:
        self._shown = self._position = 0
        self._end, self.saved = "", False

    def rewind(self) -> None:
        self._position = 0

    def take(self, part: str) -> None:
        start = max(0, self._shown - self._position)
        self._position += len(part)
        if new := part[start:]:
            print(new, end="", flush=True)
            # Parts break anywhere, in the middle of a word too.
            self.saved = self.saved or SAVED in self._end + new
            self._end = (self._end + new)[-len(SAVED) :]
            self._shown = self._position


def _copy(folder: Path, sent: Path) -> None:
    try:
        ignored = shutil.ignore_patterns(*NOT_SENT)
        shutil.copytree(folder, sent, symlinks=True, ignore=ignored)
    except (OSError, shutil.Error) as error:
        raise LaunchError(f"--working-dir {folder} cannot be copied: {error}"[:300]) from None


def exit_code(status: str, driver: int | None, saved: bool) -> int:
    """Return the exit code of a job that has ended, as `aae-dist train` gives them.

    Ray knows the code of a job that ended by itself; whether a stopped one had saved is only in
    its log.
    """
    if status == "SUCCEEDED":
        return 0
    if status == "STOPPED":
        if saved:
            return 4
        text = "the job was stopped before it logged a saved checkpoint"
        echo(f"{text}; it resumes from an older one")
        return 2
    return 1 if driver is None else driver if driver >= 0 else 128 - driver


@contextlib.contextmanager
def api_errors(address: str) -> Iterator[None]:
    """Translate errors of the client into a LaunchError of one line."""
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError:
        raise LaunchError(
            f"{address} wants a token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (under KubeRay: "
            "kubectl get secret CLUSTER -o jsonpath='{.data.auth_token}' | base64 -d)"
        ) from None
    except ConnectionError:
        raise LaunchError(
            f"no Ray dashboard answers at {address}; in Kubernetes, forward it first: "
            "kubectl port-forward service/CLUSTER-head-svc 8265"
        ) from None
    except (RuntimeError, ValueError) as error:
        raise LaunchError(f"{address}: {str(error).strip().splitlines()[0][:300]}") from None
