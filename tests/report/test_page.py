import random
import re
import time
from html.parser import HTMLParser

import pytest
from helpers.sweep_folders import Trial, write_sweep

from aae_dist.cli import main
from aae_dist.report import make_report, write_report

pytestmark = pytest.mark.run  # waits for time-outs, servers or pictures

C2ST, MSE = "prior_match/c2st", "reconstruction/mse"
CANARY = "\"><img src=x onerror=canary()><script>canary()</script></style>$\\frac{'$&amp;\n"


class Page(HTMLParser):
    """What a browser would make of the report: elements, links, text, cells of the table."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self._in_cell = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self._in_cell = False

    def handle_data(self, data):
        self.text += data
        if self._in_cell:
            self.rows[-1][-1] += data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def report(folder):
    make_report(str(folder))
    return Page((folder / "report.html").read_text())


def scored(c2st, mse, **more):
    metrics = {C2ST: c2st, f"{C2ST}_low": c2st - 0.02, f"{C2ST}_high": c2st + 0.02, MSE: mse}
    return {"metrics": {**metrics, **more}, "seconds": 7.0}


def some_trials(num):
    draw = random.Random(0)
    return [
        Trial(
            {"prior.kind": kind, "model.latent_dim": 2 ** (1 + i % 3), "run.seed": i},
            told=scored(draw.uniform(0.5, 0.9), draw.uniform(0.01, 0.05)),
        )
        for i, kind in zip(range(num), ["gaussian", "mixture"] * num, strict=False)
    ]


def test_each_trial_has_a_row_with_state_cause_interval_cost_and_a_link(tmp_path):
    cause = "TrainingDivergedError: 20 updates in a row were not finite"
    trials = [
        *some_trials(3),
        Trial({"prior.kind": "gaussian"}, state="failed", told={"cause": cause, "seconds": 3.0}),
        Trial({"prior.kind": "mixture"}, state="pruned",
              told={**scored(0.7, 0.1), "cause": "asha", "step": 9, "seconds": 2.0}),
        Trial({"prior.kind": "swiss_roll"}, state="waiting"),
    ]  # fmt: skip
    page = report(write_sweep(tmp_path / "s", trials))
    heads, *rows = page.rows
    assert heads[:3] == ["rank", "trial", "state"]
    assert heads[3:6] == ["prior.kind", "model.latent_dim", "run.seed"]
    assert [row[0] for row in rows] == ["1", "2", "3", "–", "–", "–"]
    by_number = {row[1][:2]: row for row in rows}
    assert cause in by_number["#4"][2]
    assert by_number["#5"][2].startswith("pruned")
    assert by_number["#6"][2] == "waiting"
    assert re.fullmatch(r"0\.\d+0\.\d+ to 0\.\d+", rows[0][heads.index("C2ST")])
    assert rows[0][heads.index("time")] == "7 s"
    links = [a["href"] for a in page.all("a")]
    assert sorted(links) == sorted(f"trials/{t.id}/" for t in trials[:5])  # one has not begun
    assert all((tmp_path / "s" / link).is_dir() for link in links)
    assert "Sweep finished: 1 waiting, 3 finished, 1 pruned, 1 failed" in page.text


def test_it_is_one_file_that_asks_nobody_for_anything(tmp_path):
    page = report(write_sweep(tmp_path / "s", some_trials(6)))
    sources = [a["src"] for a in page.all("img")]
    assert len(sources) == 4
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert not page.all("link")
    assert not any("src" in a for a in page.all("script"))
    policy = page.all("meta")[2]["content"]
    assert policy.startswith("default-src 'none'; img-src data:;")
    for name in ("pareto", "parameters", "parallel"):
        assert (tmp_path / "s" / "pictures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_from_names_values_causes_or_metrics_becomes_markup(tmp_path):
    trials = [
        Trial({"prior.kind": f"{CANARY}{i}", CANARY: CANARY if i else 2.0, "_under": i},
              told={**scored(0.6 + i / 100, 0.1, **{f"loss/{CANARY}": 1.0}), "cause": CANARY})
        for i in range(3)
    ]  # fmt: skip
    told = {"name": CANARY, "metric": {C2ST: 1, MSE: 1}, "search": {"kind": CANARY}}
    page = report(write_sweep(tmp_path / "s", trials, **told))
    assert len(page.all("script")) == 1
    assert not any(name.startswith("on") for _, a in page.elements for name in a)
    assert all(a["src"].startswith("data:") for a in page.all("img"))
    assert CANARY.strip() in page.text
    assert "canary" not in str(page.all("a"))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_three_hundred_trials_of_a_search_take_seconds(tmp_path):
    draw = random.Random(1)
    trials = [
        Trial(
            {"prior": {"kind": draw.choice(["gaussian", "mixture"]), "std": draw.uniform(1, 5)},
             "phases.generator.optimizer.lr": 10 ** draw.uniform(-5, -2), "run.seed": i},
            state=draw.choice(["finished", "pruned"]),
            told=scored(draw.uniform(0.5, 1), draw.uniform(0.01, 0.1)),
        )
        for i in range(300)
    ]  # fmt: skip
    folder = write_sweep(tmp_path / "s", trials, metric=[MSE, C2ST], mode=["min", "min"])
    started = time.process_time()
    page = report(folder)
    assert time.process_time() - started < 20  # 5 s on an idle core
    assert len(page.rows) == 301
    assert "on the front" in page.text


def test_a_trial_that_copied_another_one_says_from_where(tmp_path):
    event = {"parent": "/sweep/trials/abc", "step": 40, "values": {"method.weight": 2.0}}
    trials = [Trial({"run.seed": 0}, told={**scored(0.6, 0.1), "lineage": [event]})]
    page = report(write_sweep(tmp_path / "s", trials))
    assert "resumed from /sweep/trials/abc, step 40" in page.rows[1][2]


@pytest.mark.parametrize("trials", [some_trials(1), some_trials(2), []], ids=["1", "2", "0"])
def test_a_sweep_that_has_hardly_begun_has_a_report(tmp_path, trials):
    page = report(write_sweep(tmp_path / "s", trials, state="running", num_trials=9))
    assert len(page.rows) == (len(trials) + 1 if trials else 0)
    assert f"{9 - len(trials)} not proposed yet" in page.text


def test_before_the_first_evaluation_the_report_says_so(tmp_path):
    trials = [Trial({"run.seed": 0}, state="running"), Trial({"run.seed": 1}, state="waiting")]
    page = report(write_sweep(tmp_path / "s", trials, state="running"))
    assert "No trial has been evaluated yet." in page.text
    assert not page.all("img")


def test_trials_without_validation_show_their_losses(tmp_path):
    trials = [
        Trial({"model.latent_dim": z}, told={"metrics": {"loss/reconstruction": 30.0 / z}})
        for z in (2, 4)
    ]
    page = report(write_sweep(tmp_path / "s", trials))
    assert "loss/reconstruction" in page.rows[0]
    assert "trials need data.validation" in page.text
    assert "lack a finite prior_match/c2st" in page.text


def test_readers_are_warned_of_scores_that_do_not_compare(tmp_path):
    n = "prior_match/num_samples"
    trials = [
        Trial({"run.seed": 0}, told=scored(0.6, 0.1, **{n: 500.0})),
        Trial({"run.seed": 1}, told=scored(0.62, 0.1, **{n: 1000.0})),
        Trial({"run.seed": 2}, told=scored(0.9, 0.1, **{n: 1000.0})),
    ]
    page = report(write_sweep(tmp_path / "s", trials))
    assert "different numbers of samples (500, 1,000)" in page.text
    assert "those with another number than most have no rank" in page.text
    assert "were scored on another number of samples" in page.text


def test_a_folder_without_a_sweep_is_the_users_mistake_for_the_verb_alone(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert "holds no sweep.json" in capsys.readouterr().err
    write_report(str(tmp_path))
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "was not written: DataError" in error


def test_a_sweep_in_a_bucket_is_reported_there(tmp_path, s3):
    from aae_dist.storage import open_storage

    bucket = open_storage(f"{s3()}/sweep")
    local = open_storage(str(write_sweep(tmp_path / "s", some_trials(2))))
    for entry in local.list():
        bucket.write(entry.key, local.read(entry.key))
    write_report(bucket.uri)
    assert len(Page(bucket.read("report.html").decode()).rows) == 3
    assert {e.key for e in bucket.list("pictures")} >= {"pictures/pareto.png"}


@pytest.mark.run
@pytest.mark.usefixtures("pictures")
def test_really_trained_trials_are_shown_with_their_pictures(tmp_path, capsys):
    trials = [Trial({"prior.kind": kind}, steps=20) for kind in ("gaussian", "mixture")]
    folder = write_sweep(tmp_path / "s", trials)
    assert main(["report", str(folder)]) == 0
    report_line, answer, seeds = capsys.readouterr().out.strip().splitlines()[-3:]
    assert report_line.endswith(f"{folder}/report.html")
    assert answer.startswith("Recommended: kind=")
    assert seeds.startswith("Too few seeds to be sure: 2 of kind=")
    page = Page((folder / "report.html").read_text())
    alternatives = [a["alt"] for a in page.all("img")]
    for name in ("reconstructions", "prior_samples", "latent_codes"):
        assert alternatives.count(name) == 2
    assert float(page.rows[1][page.rows[0].index("mse per value")]) > 0


def test_the_recommendation_comes_first_and_the_picture_that_shows_why_next(tmp_path):
    sizes = [(2, 0.03, 0.6), (2, 0.031, 0.61), (8, 0.01, 0.6), (8, 0.011, 0.6), (32, 0.001, 0.9)]
    trials = [
        Trial(
            {"model.latent_dim": size, "run.seed": seed}, told={"metrics": {MSE: mse, C2ST: c2st}}
        )
        for seed, (size, mse, c2st) in enumerate(sizes)
    ]
    folder = write_sweep(tmp_path / "s", trials, metric=MSE, constraints={C2ST: 0.65})
    page = report(folder)
    order = [tag for tag, _ in page.elements if tag in ("h1", "p", "figure", "img", "h2")]
    assert order[:4] == ["h1", "p", "figure", "img"]
    assert page.all("p")[0]["class"] == "answer"
    answer = "Recommended: latent_dim=8, with mean reconstruction/mse 0.0105 ± 0.0005 over 2 seeds"
    assert answer in page.text
    assert page.all("img")[0]["alt"].startswith("Why: each point is the mean over the seeds")
    assert "Allowing prior_match/c2st up to 0.900 would choose latent_dim=32." in page.text
    assert "breaks prior_match/c2st at most 0.65" in page.text
    assert (folder / "pictures" / "recommendation.png").stat().st_size > 10_000
