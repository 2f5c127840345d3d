from aae_dist.tracking.sinks import parse_record


def test_half_a_line_of_a_killed_writer_is_no_record():
    lines = [b'{"step": 1}', b"[1]", b'{"a": 2}', b"\xff", b'{"step": 2, "lo', b"[" * 100_000]
    assert [parse_record(line) for line in lines] == [{"step": 1}, *[None] * 5]


def test_values_that_are_no_finite_numbers_are_left_out_of_a_record():
    line = b'{"step": 1, "a": {"b": 1}, "c": "x", "d": 1e999, "e": null, "f": 0.30000000000000004}'
    assert parse_record(line) == {"step": 1, "e": None, "f": 0.1 + 0.2}
