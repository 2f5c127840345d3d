"""Room, schedulers and Optuna without a cluster."""

import json
import pickle
import threading

import pytest

pytest.importorskip("ray.tune")

from hypothesis import given, strategies as st
from ray import cloudpickle
from ray.exceptions import ActorDiedError, RayTaskError
from ray.train._internal.storage import StorageContext
from ray.tune import schedulers
from ray.tune.error import TuneError
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from aae_dist.config.metric_names import NUM_SAMPLES
from aae_dist.errors import AaeDistError, CheckpointError, TrainingDivergedError
from aae_dist.launch import sweep as shared
from aae_dist.launch.local_sweep import Rungs
from aae_dist.launch.ray.cluster import ResourceRequest
from aae_dist.launch.sweep import SweepProgress
from aae_dist.storage import open_storage
from aae_dist.sweeps import TrialRecord
from aae_dist.sweeps.folder import TRIALS
from aae_dist.sweeps.ledger import Ledger
from aae_dist.sweeps.objective import Objective
from aae_dist.sweeps.plan import load_sweep
from aae_dist.training import checkpointer
from aae_dist.tune.driver import cause_of, max_concurrent_trials, placement_of
from aae_dist.tune.optuna import OptunaSearcher
from aae_dist.tune.schedulers import RunFolderPbt, build_scheduler
from aae_dist.tune.trial import KEPT, OBJECTIVE, SWEEP, VIOLATIONS, Trial

pytestmark = pytest.mark.ray

BASE = [
    "data.train=builtin://digits/train",
    "train.steps=900",
    "launch.workers=1",
    "sweep.name=s",
    "sweep.metric=loss/reconstruction",
]
RATE = "phases.generator.optimizer.lr"
OPTUNA = (
    "sweep.space={model.latent_dim: {randint: [2, 64]}, "
    "prior: {choice: [{kind: gaussian, std: {uniform: [1, 5]}}, {kind: laplace}]}}",
    "sweep.search={kind: optuna, startup_trials: 8}",
)


def plan_in(storage, *items):
    return load_sweep([], [*BASE, f"run.storage={storage}", *items])


def test_room_counts_whole_trials_and_never_splits_one():
    node = {"CPU": 4.0, "GPU": 1.0}
    assert max_concurrent_trials([ResourceRequest(1, {"CPU": 1.0, "GPU": 0.25})], [node, node]) == 8
    assert max_concurrent_trials([ResourceRequest(1, {"CPU": 3.0})], [node, node]) == 2
    assert max_concurrent_trials([ResourceRequest(3, {"CPU": 2.0})], [node, node]) == 1
    assert (
        max_concurrent_trials(
            [ResourceRequest(1, {"CPU": 1.0}), ResourceRequest(4, {"CPU": 1.0})], [node, node]
        )
        == 2
    )
    assert (
        max_concurrent_trials([ResourceRequest(2, {"CPU": 1.0})], [{"CPU": 8.0, "driver": 1.0}])
        == 1
    )


@pytest.fixture
def failing(tmp_path, monkeypatch):
    """Return a trial of Tune's, as it stands in the driver, that can be told of failures."""
    monkeypatch.setattr(
        "ray.train._internal.storage._get_ray_train_session_dir", lambda: str(tmp_path)
    )
    storage = StorageContext(str(tmp_path / "tune"), "sweep", trial_dir_name="t")
    trial = TuneTrial("any", config={SWEEP: {"id": "t"}}, stub=True, storage=storage)
    trial.init_local_path()
    return trial


def test_only_a_process_that_died_is_told_of_as_one(failing):
    assert cause_of(failing) == "unknown"
    failing.handle_error(TuneError(""))
    assert cause_of(failing) == "unknown"
    failing.handle_error(ActorDiedError())
    assert cause_of(failing) == "its process died"
    text = 'ray::Trial.train() (pid=7)\n  File "trial.py", line 3\n    x()\nOSError: no disk\nof it'
    failing.handle_error(RayTaskError("train", text, OSError("no disk")).as_instanceof_cause())
    assert cause_of(failing) == "OSError: no disk; of it"
    failing.handle_error(TuneError("this\nand that"))  # no pickle of it: that one is of the former
    assert cause_of(failing) == "this; and that"


def test_a_trials_state_is_pointed_at_and_stored_nowhere(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    first, second = Trial.__new__(Trial), Trial.__new__(Trial)
    for trial, name in ((first, "first"), (second, "second")):
        trial._uri, trial._at_step, trial._last_result = f"s3://bucket/{name}", 40, {"step": 40}
    saved = pickle.loads(pickle.dumps(first.save()))
    second.restore(saved)
    assert second._parent == {"uri": "s3://bucket/first", "step": 40}
    first.restore(saved)
    assert first._parent is None
    assert not list(tmp_path.iterdir())


def test_a_trial_of_several_workers_takes_no_cpu_for_itself():
    assert placement_of(ResourceRequest(1, {"CPU": 2.0}), False).bundles == [{"CPU": 2.0}]
    for drivers in (False, True):
        assert "CPU" not in placement_of(ResourceRequest(2, {"CPU": 1.0}), drivers).bundles[0]


class Tried:
    """As much of a Tune trial as ASHA looks at."""

    def __init__(self, name):
        self.trial_id = name


def judge(scheduler, name, step, value):
    trial = Tried(name)
    scheduler.on_trial_add(None, trial)
    return scheduler.on_trial_result(None, trial, {"step": step, OBJECTIVE: value})


def test_earlier_trials_fill_the_rungs_of_asha(tmp_path):
    plan = plan_in(
        tmp_path,
        "sweep.space.run.seed={grid: [0, 1]}",
        "sweep.scheduler={kind: asha, grace: 100, reduction_factor: 3}",
    )
    objective = Objective.from_config("loss/reconstruction", "min")
    ended = [
        TrialRecord(f"t{n}", n, "", {}, {}, history=({"step": 100, "loss/reconstruction": n},))
        for n in range(6)
    ]
    empty = build_scheduler(plan.sweep, objective, plan.configs, [])
    assert judge(empty, "new", 100, 5.0) == TrialScheduler.CONTINUE
    filled = build_scheduler(plan.sweep, objective, plan.configs, ended)
    assert judge(filled, "new", 100, 5.0) == TrialScheduler.STOP
    assert judge(filled, "good", 100, -1.0) == TrialScheduler.CONTINUE
    assert judge(filled, "long", 900, 9.0) == TrialScheduler.CONTINUE  # it has run to its end


def test_pbt_changes_rates_and_leaves_each_trial_its_folder(tmp_path):
    plan = plan_in(
        tmp_path,
        f"sweep.space.{RATE}={{loguniform: [1e-4, 1e-2]}}",
        "sweep.num_trials=4",
        "sweep.scheduler={kind: pbt, every_steps: 50, resample_probability: 0}",
    )
    scheduler = build_scheduler(
        plan.sweep, Objective.from_config("loss/reconstruction", "min"), plan.configs, []
    )
    assert isinstance(scheduler, RunFolderPbt)
    bad, good = Tried("bad"), Tried("good")
    bad.config = {SWEEP: {"id": "bad", "config": "B", "values": {RATE: 1e-4}}}
    good.config = {SWEEP: {"id": "good", "config": "G", "values": {RATE: 1e-3}}}
    config, _ = scheduler._get_new_config(bad, good)
    assert (config[SWEEP]["id"], config[SWEEP]["config"]) == ("bad", "B")
    assert config[SWEEP]["values"][RATE] in (0.8e-3, 1.2e-3)
    assert good.config[SWEEP]["values"][RATE] == 1e-3


@pytest.mark.parametrize("compares", [True, False])
def test_asha_leaves_out_scores_that_do_not_compare(tmp_path, compares):
    plan = plan_in(
        tmp_path,
        "sweep.space.run.seed={grid: [0, 1]}",
        "sweep.scheduler={kind: asha, grace: 100, reduction_factor: 3}",
    )
    objective = Objective.from_config("loss/reconstruction", "min")
    scheduler = build_scheduler(plan.sweep, objective, plan.configs, [], lambda result: compares)
    decisions = [judge(scheduler, f"t{n}", 100, float(n)) for n in range(6)]
    assert (TrialScheduler.STOP in decisions) == compares


def test_optuna_is_told_of_no_score_that_does_not_compare(tmp_path):
    scored = ("data.validation=builtin://digits/validation", "sweep.metric=prior_match/c2st")
    plan = plan_in(tmp_path, *OPTUNA, *scored, "sweep.num_trials=3")
    ledger = Ledger(plan, open_storage(plan.uri))
    searcher = OptunaSearcher(ledger)
    for number, samples in enumerate([500, 500, 499]):
        name = searcher.suggest(f"tune-{number}")[SWEEP]["id"]
        scores = {"step": 900, "prior_match/c2st": 0.5, NUM_SAMPLES: samples}
        ledger.start(name)
        ledger.update(name, scores, ledger.entries[name].plan.parameters)
        ledger.finish(name, "finished")
        result = {"trial_state": "finished", f"{OBJECTIVE}0": 0.5, NUM_SAMPLES: samples}
        searcher.on_trial_complete(f"tune-{number}", result)
    assert [trial.value for trial in searcher.optuna.study.trials] == [0.5, 0.5, None]
    assert len(ledger.ranked()) == 2
    line = SweepProgress(ledger, 1)._end_line(ledger.in_state("finished")[2])
    assert "499 samples, other trials of another number or other features: not compared" in line


@pytest.mark.parametrize(
    ("causes", "code"),
    [
        (["TrainingDivergedError: a", "TrainingDivergedError: b"], 3),
        (["crashed: its process died", "crashed: KeyError: 'x'"], 1),
        (["ConfigError: a", "TrainingDivergedError: b"], 2),
        (["DataError: a", "DataError: b"], 2),
        ([], 2),
    ],
)
def test_a_sweep_without_a_finished_trial_exits_as_its_trials_died(tmp_path, causes, code):
    plan = plan_in(tmp_path, "sweep.space.run.seed={grid: [0, 1]}")
    ledger = Ledger(plan, open_storage(plan.uri))
    for entry, cause in zip(ledger.in_state("waiting"), causes, strict=False):
        ledger.finish(entry.plan.id, "failed", cause)
    with pytest.raises(AaeDistError, match="no trial has finished") as raised:
        shared.check_any_finished(ledger)
    assert raised.value.exit_code == code


def test_what_trials_left_is_read_of_many_at_a_time(tmp_path, monkeypatch):
    plan = plan_in(tmp_path, "sweep.space.run.seed={grid: [0, 1, 2, 3]}")
    together = threading.Barrier(4)

    def finished_before(config):
        together.wait(30)
        if config.run.seed == 1:
            raise TrainingDivergedError("diverged before")
        if config.run.seed > 1:
            raise CheckpointError(f"seed {config.run.seed} was started with another configuration")

    monkeypatch.setattr(checkpointer, "finished_before", finished_before)
    with pytest.raises(CheckpointError, match="seed 2 was"):
        shared.check_same(plan.trials)


def leave_summary(ledger, name):
    """Write what a finished run leaves: a trial without it would be taken up again."""
    entry = ledger.entries[name]
    config = entry.plan.config.model_dump(mode="json")
    summary = {"state": "finished", "step": 900, "config": config, "metrics": entry.metrics}
    folder = ledger.folder.child(TRIALS).child(name)
    folder.write("summary.json", json.dumps(summary).encode())


def drain(searcher, ledger, score):
    """Run all proposals to their ends; return their parameters."""
    seen = []
    while (config := searcher.suggest(f"tune-{len(seen)}")) != Searcher.FINISHED:
        name = config[SWEEP]["id"]
        parameters = ledger.entries[name].plan.parameters
        value = score(parameters)
        seen.append(parameters)
        ledger.start(name)
        ledger.update(name, {"step": 900, "loss/reconstruction": value}, parameters)
        ledger.finish(name, "finished")
        leave_summary(ledger, name)
        result = {"trial_state": "finished", OBJECTIVE: value, f"{OBJECTIVE}0": value}
        searcher.on_trial_complete(f"tune-{len(seen) - 1}", result)
    ledger.write("finished")
    return seen


def score(parameters):
    return abs(parameters["model.latent_dim"] - 10) + (parameters["prior"]["kind"] == "laplace")


def test_optuna_learns_also_over_a_restart_and_repeats_nothing(tmp_path):
    first_plan = plan_in(tmp_path, *OPTUNA, "sweep.num_trials=20")
    ledger = Ledger(first_plan, open_storage(first_plan.uri))
    first = drain(OptunaSearcher(ledger), ledger, score)
    assert len(first) == 20
    assert all(("std" in p["prior"]) == (p["prior"]["kind"] == "gaussian") for p in first)

    plan = plan_in(tmp_path, *OPTUNA, "sweep.num_trials=40")
    again = Ledger(plan, open_storage(plan.uri))
    second = drain(OptunaSearcher(again), again, score)
    assert len(second) == 20
    texts = [str(p) for p in first + second]
    assert len(set(texts)) == 40
    mean_of_draws = sum(map(score, first[:8])) / 8
    assert sum(map(score, second)) / 20 < mean_of_draws / 2


@pytest.mark.parametrize("started", [True, False])
def test_optuna_takes_an_interrupted_trial_up_first(tmp_path, started):
    plan = plan_in(tmp_path, *OPTUNA, "sweep.num_trials=3")
    ledger = Ledger(plan, open_storage(plan.uri))
    name = OptunaSearcher(ledger).suggest("tune-0")[SWEEP]["id"]
    if started:
        ledger.start(name)
    assert OptunaSearcher(ledger, stopping=lambda: True).suggest("tune-1") is None
    ledger.write("running")
    again = Ledger(plan, open_storage(plan.uri))
    assert OptunaSearcher(again).suggest("tune-0")[SWEEP]["id"] == name
    assert len(again.entries) == 1


@pytest.mark.parametrize(
    "scheduler",
    ["{kind: asha, grace: 100, reduction_factor: 3}", "{kind: pbt, every_steps: 50}"],
)
def test_tune_can_store_a_scheduler_that_asks_the_drivers_book(tmp_path, scheduler):
    items = (f"sweep.space.{RATE}={{loguniform: [1e-4, 1e-2]}}", "sweep.num_trials=4")
    plan = plan_in(tmp_path, *items, f"sweep.scheduler={scheduler}")
    ledger = Ledger(plan, open_storage(plan.uri))
    built = build_scheduler(plan.sweep, ledger.objective, plan.configs, [], ledger.is_comparable)
    # As tune.Tuner does before anything starts.
    assert type(cloudpickle.loads(cloudpickle.dumps(built))) is type(built)
    assert built.compares == ledger.is_comparable


def judge_kept(scheduler, name, step, value, kept):
    trial = Tried(name)
    if name not in scheduler._trial_info:
        scheduler.on_trial_add(None, trial)
    return scheduler.on_trial_result(None, trial, {"step": step, OBJECTIVE: value, KEPT: kept})


CONSTRAINED = (
    "data.validation=builtin://digits/validation",
    "train.evaluate_every_steps=100",
    "sweep.constraints={prior_match/c2st: 0.65}",
)


def test_asha_never_stops_the_only_trial_that_keeps_the_constraints(tmp_path):
    plan = plan_in(
        tmp_path,
        *CONSTRAINED,
        "sweep.space.run.seed={grid: [0, 1]}",
        "sweep.scheduler={kind: asha, grace: 100, reduction_factor: 3}",
    )
    objective = Objective.from_config("loss/reconstruction", "min", plan.sweep.constraints)
    scheduler = build_scheduler(plan.sweep, objective, plan.configs, [])
    go_on, stop = TrialScheduler.CONTINUE, TrialScheduler.STOP
    assert judge_kept(scheduler, "a", 100, 0.1, kept=True) == go_on
    assert judge_kept(scheduler, "b", 100, 0.2, kept=True) == stop  # a keeps them, too
    assert judge_kept(scheduler, "a", 200, 1.5, kept=False) == go_on
    assert judge_kept(scheduler, "c", 100, 0.3, kept=True) == go_on  # now the only one
    assert judge_kept(scheduler, "d", 100, 1.1, kept=False) == stop

    def record(c2st, loss):
        return {"step": 100, "loss/reconstruction": loss, "prior_match/c2st": c2st}

    ended = [
        TrialRecord("t0", 0, "", {}, {}, "pruned", history=(record(0.6, 1.0),)),
        TrialRecord("t1", 1, "", {}, {}, "finished", history=(record(0.7, 0.0),)),
    ]
    again = build_scheduler(plan.sweep, objective, plan.configs, ended)
    assert again.keeping == set()  # a pruned trial cannot be the one that is chosen


@pytest.mark.parametrize("is_constrained", [True, False])
def test_optuna_gets_constraints_as_its_own_and_learns_from_them(tmp_path, is_constrained):
    items = (*OPTUNA, *CONSTRAINED, "sweep.metric=reconstruction/mse")
    items += () if is_constrained else ("sweep.constraints={prior_match/c2st: 9}",)
    plan = plan_in(tmp_path, *items, "sweep.num_trials=30")
    ledger = Ledger(plan, open_storage(plan.uri))
    seen, searcher = [], OptunaSearcher(ledger)
    while (config := searcher.suggest(f"tune-{len(seen)}")) != Searcher.FINISHED:
        name = config[SWEEP]["id"]
        size = ledger.entries[name].plan.parameters["model.latent_dim"]
        # The error falls with the size, the match is lost above 20.
        metrics = {"step": 900, "reconstruction/mse": 1 / size, "prior_match/c2st": size / 32}
        ledger.start(name)
        ledger.update(name, metrics, ledger.entries[name].plan.parameters)
        ledger.finish(name, "finished")
        violations = list(ledger.objective.violations(metrics))
        result = {"trial_state": "finished", f"{OBJECTIVE}0": 1 / size, VIOLATIONS: violations}
        searcher.on_trial_complete(f"tune-{len(seen)}", result)
        seen.append(size)
    allowed = [size for size in seen if size <= 20 or not is_constrained]
    assert searcher.optuna.study.best_trial.value == pytest.approx(1 / max(allowed))
    assert (sum(seen[10:]) / 20 < 30) == is_constrained
    again = OptunaSearcher(ledger)  # as after a restart
    assert again.optuna.study.best_trial.value == searcher.optuna.study.best_trial.value


@given(
    st.lists(st.tuples(st.integers(0, 8), st.sampled_from([100, 200, 300, 600]), st.floats(-1, 1))),
    st.sampled_from(["min", "max"]),
)
def test_rungs_without_ray_decide_as_rays_asha(events, mode):
    theirs = schedulers.AsyncHyperBandScheduler(
        time_attr="step", metric=OBJECTIVE, mode=mode, max_t=900, grace_period=100,
        reduction_factor=3, stop_last_trials=False,
    )  # fmt: skip
    ours, seen, stopped = Rungs(100, 900, 3, mode), {}, set()
    for number, step, score in events:
        name = f"t{number}"
        if name not in seen:
            seen[name] = Tried(name)
            theirs.on_trial_add(None, seen[name])
        if name not in stopped:
            result = {"step": step, OBJECTIVE: score}
            decision = theirs.on_trial_result(None, seen[name], result) == TrialScheduler.STOP
            assert ours.stops(name, step, score, is_kept=False) == decision
            stopped |= {name} if decision else set()


def test_rungs_never_stop_the_only_trial_that_keeps_the_constraints():
    rungs = Rungs(100, 900, 3, "min")
    assert not rungs.stops("a", 100, 0.1, is_kept=True)
    assert rungs.stops("b", 100, 0.2, is_kept=True)
    assert not rungs.stops("a", 200, 1.5, is_kept=False)
    assert not rungs.stops("c", 100, 0.3, is_kept=True)
    assert rungs.stops("d", 100, 1.1, is_kept=False)
