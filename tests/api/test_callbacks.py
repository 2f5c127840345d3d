"""Callbacks get plain dictionaries, may stop the run, and an exception leaves a checkpoint."""

from pathlib import Path
from typing import Any

import pytest
from helpers.arrays import digits, small

import aae_dist
from aae_dist.inference.trained_run import load_run

pytestmark = pytest.mark.run


class Recording(aae_dist.Callback):
    def __init__(self) -> None:
        self.seen: list[tuple[str, int]] = []
        self.last: dict[str, Any] = {}

    def on_log(self, metrics):
        assert type(metrics) is dict
        self.seen.append(("log", metrics["step"]))
        assert metrics["loss/reconstruction"] > 0

    def on_evaluate(self, metrics):
        self.seen.append(("evaluate", metrics["step"]))
        assert 0 <= metrics["prior_match/c2st"] <= 1

    def on_checkpoint(self, checkpoint):
        self.seen.append(("checkpoint", checkpoint["step"]))
        assert Path(checkpoint["uri"], "MANIFEST.json").exists()
        self.last = checkpoint


def test_callbacks_are_called_at_log_points_evaluations_and_checkpoints(tmp_path: Path) -> None:
    callback = Recording()
    config = small(
        tmp_path,
        train={"steps": 12, "log_every_steps": 5, "evaluate_every_steps": 6},
        checkpoint={"every_steps": 4, "every_seconds": None},
    )
    aae_dist.train(config, digits(), [callback], validation=0.4, progress=False)
    assert [step for kind, step in callback.seen if kind == "log"] == [5, 10, 12]
    assert [step for kind, step in callback.seen if kind == "evaluate"] == [6, 12]
    stored = [step for kind, step in callback.seen if kind == "checkpoint"]
    assert stored[-1] == 12
    assert set(stored) <= {4, 6, 8, 12}
    assert callback.last["uri"].endswith("step-000000012")


class Stop:
    def on_log(self, metrics):
        return metrics["step"] >= 8


def test_a_callback_stops_the_run_which_the_same_call_resumes(tmp_path: Path) -> None:
    stopped = aae_dist.train(small(tmp_path), digits(200), [Stop()], progress=False)
    assert (stopped.state, stopped.step) == ("interrupted", 8)
    resumed = aae_dist.train(small(tmp_path), digits(200), progress=False)
    assert (resumed.state, resumed.step, resumed.uri) == ("finished", 24, stopped.uri)


class Fails(aae_dist.Callback):
    def on_log(self, metrics):
        raise ZeroDivisionError("mine")


def test_an_exception_ends_the_run_with_a_checkpoint_and_is_raised(tmp_path: Path) -> None:
    config = small(tmp_path, run={"name": "run"})
    others = Recording()
    with pytest.raises(ZeroDivisionError, match="mine") as caught:
        aae_dist.train(config, digits(200), [Fails(), others], progress=False)
    assert caught.value.__notes__ == ["in on_log of Fails, step 4"]
    assert load_run(f"{tmp_path}/run").step == 4
    assert aae_dist.train(config, digits(200), progress=False).step == 24


@pytest.mark.parametrize(
    ("callback", "message"),
    [(Recording, "is a class; give an object"), (print, "has none of on_log, on_evaluate")],
)
def test_what_is_no_callback_is_refused(tmp_path: Path, callback: Any, message: str) -> None:
    with pytest.raises(aae_dist.ConfigError, match=message):
        aae_dist.train(small(tmp_path), digits(200), [callback])


def test_callbacks_are_refused_under_ray(tmp_path: Path) -> None:
    config = small(tmp_path, launch={"kind": "ray"})
    with pytest.raises(aae_dist.ConfigError, match="launch.kind=local"):
        aae_dist.train(config, digits(200), [Stop()])
