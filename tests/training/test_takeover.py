"""A run that takes over another run's state goes on bit for bit as that one would have."""

import gc
import json
import weakref
from functools import partial

import pytest
import torch
from helpers.runs import TINY, final_tensors, metrics

from aae_dist.checkpoints.store import CheckpointStore
from aae_dist.config import load_config
from aae_dist.distributed.accelerated import Accelerated
from aae_dist.distributed.world import World
from aae_dist.errors import CheckpointError
from aae_dist.launch.trial_session import Channel, Ended, Session, StopFlag
from aae_dist.launch.trial_training import train_here
from aae_dist.storage import open_storage
from aae_dist.training.setup import build_engine
from aae_dist.training.takeover import PENDING, resumed_config, take_over
from aae_dist.training.trainer import train

pytestmark = pytest.mark.run

RATE = "phases.generator.optimizer.lr"


class Quiet:
    """A reporter that asks to stop at a step."""

    def __init__(self, stop_at=None):
        self.stop_at, self.stop = stop_at, False

    def report(self, metrics):
        self.stop = self.stop_at is not None and metrics["step"] >= self.stop_at

    def stop_requested(self):
        return self.stop

    def save_requested(self):
        return False

    def stopped_as(self):
        return "interrupted"

    def line(self, text):
        pass


def config(storage, name, *items):
    base = [f"run.storage={storage}", f"run.name={name}", *TINY, "data.validation=null"]
    return load_config([], [*base, "train.steps=40", "launch.workers=1", *items]).config


def go(settings, stop_at=None):
    torch.set_num_threads(1)
    world = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))
    return train(settings, world, Quiet(stop_at), "launch")


def assert_bit_equal(got, expected, but=()):
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        if name not in but:
            same = torch.equal(got[name], value) if isinstance(value, torch.Tensor) else None
            assert same or got[name] == value, name


def test_only_the_rates_differ_from_the_donors_checkpoint(tmp_path):
    donor = config(tmp_path, "donor", "run.seed=5")
    other = config(tmp_path, "other", "run.seed=9", f"{RATE}=0.01")
    go(donor, stop_at=20)
    go(other, stop_at=30)
    pointer = {"uri": f"{tmp_path}/donor", "step": 20}
    event = take_over(other, pointer, {RATE: 0.007}, "launch")
    assert event == {"donor": f"{tmp_path}/donor", "step": 20, "values": {RATE: 0.007}}

    run = f"{tmp_path}/other"
    assert_bit_equal(final_tensors(run, 20), final_tensors(f"{tmp_path}/donor", 20))
    assert CheckpointStore(open_storage(run), keep=1).steps() == [20]
    going_on = resumed_config(other, "launch")
    assert going_on.run.seed == 5
    assert going_on.run.name == "other"
    assert going_on.phases.generator.optimizer.lr == 0.007

    # Going on with the donor's own rates would be the donor itself, to the last bit.
    assert go(going_on).state == "finished"
    twin = config(tmp_path, "twin", "run.seed=5")
    take_over(twin, pointer, {RATE: donor.phases.generator.optimizer.lr}, "launch")
    assert go(resumed_config(twin, "launch")).state == "finished"
    assert go(donor).state == "finished"
    whole, alike, changed = (
        final_tensors(f"{tmp_path}/{n}", 40) for n in ("donor", "twin", "other")
    )
    assert_bit_equal(alike, whole)
    assert any(not torch.equal(changed[n], v) for n, v in whole.items() if n != "state")
    assert [m["step"] for m in metrics(run)] == [10, 20, 30, 40]


def test_a_takeover_that_was_cut_short_is_done_again(tmp_path):
    donor, other = config(tmp_path, "donor", "run.seed=5"), config(tmp_path, "other")
    go(donor, stop_at=20)
    go(other, stop_at=10)
    folder = open_storage(f"{tmp_path}/other")
    event = {"donor": f"{tmp_path}/donor", "step": 20, "values": {RATE: 0.002}}
    folder.write(PENDING, json.dumps(event).encode())
    folder.clear("checkpoints")  # as far as a killed process had come

    assert resumed_config(other, "launch").phases.generator.optimizer.lr == 0.002
    assert_bit_equal(final_tensors(f"{tmp_path}/other", 20), final_tensors(f"{tmp_path}/donor", 20))
    assert folder.size(PENDING) is None


def test_a_donor_that_has_gone_on_gives_its_newest_state(tmp_path):
    donor, other = config(tmp_path, "donor"), config(tmp_path, "other")
    go(donor, stop_at=20)
    event = take_over(other, {"uri": f"{tmp_path}/donor", "step": 10}, {}, "launch")
    assert event["step"] == 20


def test_a_donor_without_a_checkpoint_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint to take over"):
        take_over(config(tmp_path, "a"), {"uri": f"{tmp_path}/b", "step": 1}, {}, "launch")


def session(settings, pause_every=None):
    flag = StopFlag()
    channel = Channel(settings, ("loss/reconstruction",), flag)
    return Session(partial(train_here, lambda: settings, "launch", pause_every), channel, flag)


def test_a_session_tells_of_scores_and_its_end_and_pauses_where_asked(tmp_path):
    settings = config(tmp_path, "run")
    paused = session(settings, pause_every=20)
    told = []
    while not isinstance(event := paused.next(), Ended):
        told.append(event["step"])
    assert told == [10]
    assert (event.outcome.state, event.outcome.step) == ("interrupted", 20)
    assert "loss/reconstruction" in event.outcome.metrics

    rest = session(settings)
    told = []
    while not isinstance(event := rest.next(), Ended):
        told.append(event["step"])
    assert told == [30]  # the last one comes with the outcome
    assert (event.outcome.state, event.outcome.step) == ("finished", 40)


class Nobody:
    def report(self, metrics):
        pass


@pytest.fixture
def encoders(monkeypatch):
    """Weak references to the encoders of all runs that are begun."""
    found = []

    def build(data, world):
        engine = build_engine(data, world)
        found.append(weakref.ref(engine.networks.encoder))
        return engine

    monkeypatch.setattr("aae_dist.training.trainer.build_engine", build)
    return found


def test_a_finished_trial_leaves_nothing_in_the_process(tmp_path, encoders):
    settings = config(tmp_path, "run", "data.validation=builtin://digits/validation")
    gc.disable()
    try:
        assert train_here(lambda: settings, "launch", None, Nobody(), StopFlag()).step == 40
        assert [encoder() for encoder in encoders] == [None]
    finally:
        gc.enable()


@pytest.mark.timeout(240)
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_every_latent_size_of_a_sweep_is_compiled_in_a_shared_process(tmp_path, monkeypatch):
    compiled = []

    def backend(graph, example_inputs):
        compiled.append(graph)
        return graph.forward

    monkeypatch.setattr(Accelerated, "BACKEND", staticmethod(backend))
    counts = []
    with torch._dynamo.config.patch(recompile_limit=2):
        for size in range(2, 6):
            items = (f"model.latent_dim={size}", "train.compile=true", "train.steps=2")
            settings = config(tmp_path, f"run-{size}", *items)
            before = len(compiled)
            train_here(lambda chosen=settings: chosen, "launch", None, Nobody(), StopFlag())
            counts.append(len(compiled) - before)
    assert counts == counts[:1] * 4


def test_a_session_that_is_stopped_saves_and_says_pruned(tmp_path):
    going = session(config(tmp_path, "run", "train.steps=100000"))
    assert going.next()["step"] == 10
    ended = going.stop("pruned")
    assert ended.outcome.state == "pruned"
    steps = CheckpointStore(open_storage(f"{tmp_path}/run"), keep=1).steps()
    assert steps[-1:] == [ended.outcome.step]
    summary = json.loads(open_storage(f"{tmp_path}/run").read("summary.json"))
    assert summary["state"] == "pruned"


def test_a_sessions_mistake_and_crash_are_told_apart(tmp_path):
    wrong = session(config(tmp_path, "a", "prior.kind=custom", "prior.path=nowhere:Prior"))
    assert wrong.next().mistake.startswith("ConfigError: ")
    (tmp_path / "b").write_text("not a folder")
    blocked = session(config(tmp_path, "b")).next()
    assert blocked.mistake or blocked.crash
