import json
import math

from aae_dist.tracking import JsonLinesSink
from aae_dist.tracking.sinks import parse_records


def test_every_record_is_one_flushed_line(tmp_path):
    sink = JsonLinesSink(tmp_path / "new" / "metrics.jsonl")
    sink.log({"step": 1, "loss/reconstruction": 0.5})
    sink.log({"step": 2, "loss/reconstruction": 0.25})
    lines = sink.content().decode().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]
    sink.picture("latent_codes", b"", 2)
    sink.close({}, "finished")
    assert sink.records()[1] == {"step": 2, "loss/reconstruction": 0.25}


def test_numbers_that_json_lacks_are_null(tmp_path):
    sink = JsonLinesSink(tmp_path / "metrics.jsonl")
    sink.log({"step": 1, "a": math.nan, "b": math.inf, "c": 1.5})
    sink.close({}, "finished")
    assert sink.records() == [{"step": 1, "a": None, "b": None, "c": 1.5}]


def test_numbers_come_back_to_the_last_bit(tmp_path):
    sink = JsonLinesSink(tmp_path / "metrics.jsonl")
    sink.log({"step": 1, "a": 0.1 + 0.2})
    sink.close({}, "finished")
    assert sink.records()[0]["a"] == 0.1 + 0.2


def test_a_resume_cuts_the_lines_past_its_step(tmp_path):
    path = tmp_path / "metrics.jsonl"
    first = JsonLinesSink(path)
    for step in range(1, 6):
        first.log({"step": step, "run": 1})
    first.close({}, "failed")
    second = JsonLinesSink(path, earlier=first.content(), resumed_step=3)
    second.log({"step": 4, "run": 2})
    second.close({}, "finished")
    assert [(r["step"], r["run"]) for r in second.records()] == [(1, 1), (2, 1), (3, 1), (4, 2)]


def test_what_lies_in_the_node_local_file_is_not_trusted(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "from": "another run"}\n')
    sink = JsonLinesSink(path)
    sink.close({}, "finished")
    assert sink.content() == b""


def test_half_a_line_of_a_killed_writer_is_left_out():
    assert parse_records(b'{"step": 1}\n[1]\n{"a": 2}\n\xff\n{"step": 2, "lo') == [{"step": 1}]
