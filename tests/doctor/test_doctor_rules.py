"""What facts about machines mean: green, or red with the right advice."""

import dataclasses

import pytest

from aae_dist.doctor import rules
from aae_dist.doctor.rules import PACKAGES, Machine, Space, bad, good, lines

GIB = 2**30


def machine(host="a", **changes):
    versions = {name: "1.0" for name in (*PACKAGES, "aae_dist", "python", "code")}
    fine = Machine(
        host=host,
        versions=versions | changes.pop("versions", {}),
        gpus=(),
        nccl=None,
        shared_memory=Space("/dev/shm", 4 * GIB, 8 * GIB),
        scratch=Space("/tmp", 50 * GIB, 100 * GIB),
    )
    return dataclasses.replace(fine, **changes)


def red(findings):
    return [f for f in findings if not f.ok]


ALIKE = [machine("a"), machine("b")]


@pytest.mark.parametrize(
    "findings",
    [
        rules.same_versions(ALIKE),
        rules.gpus(ALIKE, wanted=0),
        rules.gpus([machine("a", gpus=("H100",), nccl="2.30"), machine("b", gpus=("H100",))], 1),
        rules.shared_memory(ALIKE),
        rules.disk(ALIKE),
        rules.clocks({"a": 0.0, "b": -1.5}),
        rules.network({1024: 1e-4, 2**26: 0.05}, 2, "gloo"),
    ],
)
def test_a_sound_place_is_green(findings):
    found = list(findings)
    assert found
    assert not red(found)


@pytest.mark.parametrize(
    ("findings", "words"),
    [
        (
            rules.same_versions([machine("a"), machine("b", versions={"torch": "2.0"})]),
            "torch 2.0 on b",
        ),
        (
            rules.same_versions([machine("a"), machine("b", versions={"code": "f00"})]),
            "code f00 on b",
        ),
        (
            rules.same_versions(
                [machine("b", versions={"torch": "2.0"}), machine("c"), machine("d")]
            ),
            "torch 2.0 on b",
        ),
        (rules.gpus(ALIKE, wanted=1), "no GPU that torch can use on a, b"),
        (rules.gpus([machine(gpus=("T4",)), machine(gpus=("L4",))], 1), "different GPUs: L4, T4"),
        (
            rules.shared_memory([machine(shared_memory=Space("/dev/shm", 0, 64 << 20))]),
            "64 MiB on a",
        ),
        (rules.shared_memory([machine(shared_memory=None)]), "none on a"),
        (
            rules.disk([machine(scratch=Space("/tmp", 100 << 20, 10 * GIB))]),
            "100 MiB of 10.0 GiB free",
        ),
        (rules.disk([machine(scratch=Space("/tmp", 4 * GIB, 100 * GIB))]), "4.0 GiB of 100.0 GiB"),
        (rules.clocks({"a": 0.0, "b": 120.0}), "b is 120.0 s ahead"),
        (rules.clocks({"b": -7.0}), "b is 7.0 s behind"),
        (rules.network({1024: 1e-3, 2**26: 60.0}, 2, "gloo"), "1 MB/s"),
        (
            rules.network("connection refused", 2, "gloo"),
            "cannot communicate (gloo): connection refused",
        ),
    ],
)
def test_what_is_wrong_is_red_and_says_what_to_do(findings, words):
    [finding] = red(findings)
    assert words in finding.text
    assert finding.advice


def test_latency_and_bandwidth_are_found_again():
    seconds = {n: 2e-4 + n / 1.5e9 for n in (2**10, 2**16, 2**20, 2**26)}
    latency, bandwidth = rules.fit(seconds)
    assert latency == pytest.approx(2e-4, rel=1e-6)
    assert bandwidth == pytest.approx(1.5e9, rel=1e-6)


def test_lines_can_be_read_without_colours():
    found = lines([good("disk", "fine"), bad("disk", "full", "free some")], colours=False)
    assert found[0].startswith("ok ")
    assert found[1].startswith("RED")
    assert found[1].endswith("full -> free some")
    assert "\033[31m" in lines([bad("a", "b", "c")], colours=True)[0]
