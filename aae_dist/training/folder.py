"""A run as its launcher sees it: how it ended, its verdict, callbacks, and the run's folder.

The folder is `<run.storage>/<run.name>/`, with the same layout for every launcher.
"""

import hashlib
import json
import logging
import math
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, Literal, Protocol

from pydantic import Field

from aae_dist.config import RunConfig, dump_yaml
from aae_dist.errors import AaeDistError, Interrupted, LaunchError
from aae_dist.storage import Storage, join, open_storage, read_or_none
from aae_dist.storage.documents import Count, Document, Map, Metrics, read_document
from aae_dist.training.lock import RunLock
from aae_dist.utils.text import one_line, redact, redacted

logger = logging.getLogger(__name__)


class RunState(StrEnum):
    """How a run ended."""

    FINISHED = "finished"
    ALREADY_FINISHED = "already_finished"
    """In an earlier launch."""
    INTERRUPTED = "interrupted"
    PRUNED = "pruned"
    """Interrupted by a sweep."""
    DIVERGED = "diverged"
    FAILED = "failed"
    """Ended by an error; the same command tries again."""


@dataclass(frozen=True)
class Outcome:
    """The result of a training run; one that diverged raises an error instead."""

    state: RunState
    step: int
    """Steps done since the start of the run."""
    metrics: dict[str, float]
    """Newest value of every metric."""
    run_uri: str
    verdict: dict[str, Any] | None = None
    """How good a finished run is, in words; see `give_verdict`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "state", RunState(self.state))  # text, where it comes from JSON


class Reporter(Protocol):
    """The launcher's callbacks: progress out, stop and save requests in."""

    def report(self, metrics: Mapping[str, float]) -> None:
        """Report the metrics of a log point; every rank calls it at the same steps."""

    def stop_requested(self) -> bool:
        """Return whether this process was asked to stop; cheap, local, never blocks."""

    def stopped_as(self) -> str:
        """Return the `RunState` of a run that was asked to stop: interrupted or pruned."""

    def save_requested(self) -> bool:
        """Return whether a checkpoint was requested, once per request; cheap, local."""

    def line(self, text: str) -> None:
        """Show one line of progress; called on rank 0 only."""


CONFIG, SUMMARY, RUN = "config.yaml", "summary.json", "run.json"
BAD_SAMPLES = "bad_samples.jsonl"
MARKER = ".nonce"
"""Shows workers that they see the folder that the driver sees."""


class Verdict(Document):
    """How good a finished run is; what `give_verdict` returns."""

    match: Literal["good", "fair", "poor"] | None = None
    reconstruction: Map = Field(default_factory=dict)
    alarms: tuple[str, ...] = ()
    """Those that hold at the end."""
    advice: tuple[str, ...] = ()
    text: tuple[str, ...] = ()
    """Lines for the console."""


class Summary(Document):
    """How a run ended; the contents of summary.json."""

    state: RunState
    step: Count
    metrics: Metrics = Field(default_factory=dict)
    alarms: dict[str, Count] = Field(default_factory=dict)
    """Steps at which each alarm was first raised."""
    verdict: Verdict | None = None
    config: Map = Field(default_factory=dict)
    cause: str | None = None
    """The error of a run that failed, in one line."""

    @property
    def plan(self) -> tuple[Any, Any]:
        """`train.steps` and `train.epochs` of the run that ended."""
        train = self.config.get("train")
        section = train if isinstance(train, dict) else {}
        return section.get("steps"), section.get("epochs")


class RunRecord(Document):
    """The contents of run.json: what distinguishes a run from all others, and its last step."""

    id: Annotated[str, Field(pattern=r"^[0-9a-z]{8,64}$")]
    """Random, drawn at the first start: neither name nor address of a run identifies it."""
    total_steps: Count
    """The last step by its plan and data, of the newest start."""


class RunFolder:
    """Reads and writes the files of a run, except for its checkpoints."""

    def __init__(self, config: RunConfig, probe: bool = False) -> None:
        """Open the folder that `config.run` names; nothing is created or checked yet."""
        self.uri = join(config.run.storage, config.run.name)
        self.storage: Storage = open_storage(self.uri, probe=probe)

    def write_config(self, config: RunConfig) -> None:
        self.storage.write(CONFIG, dump_yaml(config, without_secrets=True).encode())

    def write_summary(
        self,
        outcome: Outcome,
        config: RunConfig,
        alarms: Mapping[str, int] | None = None,
        cause: str | None = None,
    ) -> None:
        """Write how the run ended; a metric that is not finite becomes null.

        `alarms` are the steps at which each alarm was first raised, `cause` is why it failed.
        """
        summary = {
            "state": outcome.state,
            "step": outcome.step,
            "metrics": {k: v if math.isfinite(v) else None for k, v in outcome.metrics.items()},
            "alarms": dict(alarms or {}),
            "verdict": outcome.verdict,
            "config": redacted(config.model_dump(mode="json")),
            **({"cause": redact(cause)} if cause else {}),
        }
        self.storage.write(SUMMARY, json.dumps(summary, indent=2, allow_nan=False).encode())

    def read_summary(self) -> Summary | None:
        """Return how the run ended, None if it has not; DataError for a damaged file."""
        return read_document(self.storage, SUMMARY, Summary)

    def register(self, config: RunConfig, total_steps: int) -> RunRecord:
        """Write run.json at a start of the run, and return it: its id stays for ever."""
        found = read_document(self.storage, RUN, RunRecord)
        if found is None:
            # A run of an older version continues under the id that it has in W&B.
            is_new = self.storage.size(CONFIG) is None
            name = f"{config.run.storage}\n{config.run.name}"
            old = hashlib.sha256(name.encode()).hexdigest()[:16]
            found = RunRecord(id=secrets.token_hex(8) if is_new else old, total_steps=total_steps)
        record = found.model_copy(update={"total_steps": total_steps})
        self.storage.write(RUN, record.model_dump_json().encode())
        return record


def record_failure(
    folder: RunFolder,
    config: RunConfig,
    error: BaseException,
    lock: RunLock | None,
    outcome: Outcome | None = None,
) -> None:
    """Write on rank 0, which holds the lock, that the run failed and why; never raises.

    Without an `outcome` nothing was trained: a summary of an earlier start is then left as it is.
    """
    # Another start may be refused where the run itself is sound, for a mistyped key for instance.
    if lock is None or isinstance(error, Interrupted | KeyboardInterrupt):
        return
    try:
        lock.check()
        if outcome is None and folder.storage.size(SUMMARY) is not None:
            return
        ended = outcome or Outcome(RunState.FAILED, 0, {}, folder.uri)
        folder.write_summary(ended, config, cause=one_line(error))
    except (AaeDistError, OSError) as problem:
        logger.warning("%s was not written: %s", SUMMARY, problem)


GOOD_C2ST, FAIR_C2ST = 0.60, 0.70
"""A match is good, or fair, up to this accuracy of a classifier; 0.5 is perfect."""
GOOD_CLASSES, FAIR_CLASSES = 0.9, 0.7
"""`codes/class_entropy` and `codes/confidence` of a good, or fair, match of classes."""
COLLAPSED_SPREAD = 0.1
"""Spread of the codes over that of the prior, in some direction, below which they collapsed."""
MIN_GAIN = 0.02
"""Part by which an error must lie beyond another one to be called different."""


def match_of(metrics: Mapping[str, float | None]) -> str | None:
    """Return how well codes match the prior: good, fair or poor; None without an evaluation.

    Of a code in parts it is the worst part's. Good includes what could be a perfect match: 0.5 lies
    within the interval of C2ST.
    """
    if "prior_match/c2st" not in metrics:
        return None
    c2st, low = metrics["prior_match/c2st"], metrics.get("prior_match/c2st_low")
    spread = metrics.get("codes/smallest_spread")
    if c2st is None or not math.isfinite(c2st) or _is_collapsed(spread):
        return "poor"
    classes = [metrics.get(f"codes/{name}") for name in ("class_entropy", "confidence")]
    certain = min([value for value in classes if value is not None], default=1.0)
    if certain < FAIR_CLASSES:
        return "poor"
    if certain >= GOOD_CLASSES and (c2st <= GOOD_C2ST or (low is not None and low <= 0.5)):
        return "good"
    return "fair" if c2st <= FAIR_C2ST else "poor"


def give_verdict(
    metrics: Mapping[str, float | None],
    config: RunConfig,
    alarms: Mapping[str, int] | None = None,
    no_pca: str | None = None,
) -> dict[str, Any]:
    """Return the verdict on a run: match, reconstruction, alarms, advice, and its lines of text.

    Args:
        metrics: newest value of every metric, an evaluation's among them.
        config: the run's configuration.
        alarms: the step at which each alarm was first raised.
        no_pca: why there is no PCA to compare with.
    """
    metrics = {n: v if v is not None and math.isfinite(v) else None for n, v in metrics.items()}
    match, reconstruction = match_of(metrics), _reconstruction(metrics, no_pca)
    raised = dict(alarms or {})
    lasting = [name for name in raised if metrics.get(f"alarm/{name}")]
    advice = list(_advice(match, reconstruction, config))
    lines = [reconstruction["text"]] if match else []
    lines += [
        f"Alarm {name}, since step {step:,}" + ("." if name in lasting else ", over by the end.")
        for name, step in raised.items()
    ]
    if advice:
        lines.append(f"To try: {'; '.join(advice)}.")
    return {
        "match": match,
        "reconstruction": reconstruction,
        "alarms": lasting,
        "advice": advice,
        "text": [*lines, _last_line(match, metrics)],
    }


def _is_collapsed(spread: float | None) -> bool:
    return spread is not None and spread < COLLAPSED_SPREAD


def _reconstruction(
    metrics: Mapping[str, float | None], no_pca: str | None
) -> dict[str, float | str | None]:
    """Return the error as parts of the variance and of a PCA's error, None where unknown."""
    mse, variance = metrics.get("reconstruction/mse"), metrics.get("reconstruction/variance")
    pca = metrics.get("reconstruction/pca")
    of_variance = mse / variance if mse is not None and variance else None
    of_pca = mse / pca if mse is not None and pca else None
    if pca == 0:
        no_pca = "it loses nothing"
    found: dict[str, float | str | None] = {"mse": mse, "of_variance": of_variance}
    found["of_pca"] = of_pca
    text = "Reconstruction: "
    text += "error unknown" if mse is None else f"error {mse:.4g} per value"
    if of_variance is not None:
        text += f", {of_variance:.1%} of the variance"
    if of_pca is not None and pca is not None and variance:
        word = "better" if of_pca < 1 else "worse"
        text += f"; a PCA of the same size loses {pca / variance:.1%}, so this is "
        text += f"{abs(1 - of_pca):.0%} {word}" if abs(1 - of_pca) > MIN_GAIN else "as good"
    else:
        found["no_pca"] = no_pca or "its training samples could not be read, or are too few"
        text += f"; not compared with a PCA ({found['no_pca']})"
    return found | {"text": f"{text}."}


def _advice(
    match: str | None, reconstruction: Mapping[str, Any], config: RunConfig
) -> Iterator[str]:
    """Yield remedies that the runs of docs/benchmarks.md have shown to work."""
    method = config.method
    if match in ("fair", "poor"):
        if not hasattr(method, "adversary"):
            yield "method.kind=adversarial"
        elif getattr(method, "balance", "auto") != "auto":
            yield "method.balance=auto, which holds the codes near the prior"
    worse = (reconstruction["of_pca"] or 0.0) > 1 + MIN_GAIN
    if match in ("fair", "poor") or worse:
        now = config.train.steps or config.train.epochs
        yield f"more {'steps' if config.train.steps else 'epochs'} (now {now:,})"
    if match == "poor":
        if config.model.latent_dim > 2:
            yield f"a smaller model.latent_dim (now {config.model.latent_dim})"
        yield f"another prior (now {config.prior.kind})"


def _last_line(match: str | None, metrics: Mapping[str, float | None]) -> str:
    if match is None:
        return "Verdict: none, since nothing was evaluated; set data.validation."
    c2st, spread = metrics["prior_match/c2st"], metrics.get("codes/smallest_spread")
    if c2st is None:
        return "Verdict: poor match: codes are not finite."
    scores = f"C2ST {c2st:.3f}, where 0.5 is perfect and 1.0 is no overlap"
    if _is_collapsed(spread):
        return f"Verdict: poor match: the codes have collapsed in some direction ({scores})."
    meaning = {
        "good": "a classifier hardly tells the codes from samples of the prior",
        "fair": "the codes differ from the prior in part",
        "poor": "the codes ended far from the prior, so decoded samples of it will not look like "
        "the data",
    }
    return f"Verdict: {match} match: {meaning[match]} ({scores})."


def write_marker(folder: Storage) -> str:
    """Return the folder's marker token, creating it on first launch."""
    token = secrets.token_hex(16)
    if folder.create(MARKER, token.encode()):
        return token
    return folder.read(MARKER).decode(errors="replace")


def check_marker(folder: Storage, token: str) -> None:
    """Raise LaunchError unless `folder` holds the driver's token: then it is another folder."""
    found = read_or_none(folder, MARKER)
    if found is None or found.decode(errors="replace") != token:
        raise LaunchError(
            f"{folder.uri}: this folder is not shared between nodes: a worker does not see what "
            "the driver wrote there. Set run.storage to s3:// (gs://, az://) or to a shared mount."
        )
