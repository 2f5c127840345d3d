"""Eight tiny runs end with the bits that they ended with before the code was rearranged.

Networks, moving averages, optimizers and the state. The last bits depend on the kind of CPU and on
torch's build: on a machine whose hashes are not stored, nothing is compared.
"""

import json
from pathlib import Path

import pytest
from helpers.golden import CASES, GOLDEN, machine, train_and_hash


def cases(*, several_ranks: bool) -> list[str]:
    return [name for name, (ranks, _) in CASES.items() if (ranks > 1) == several_ranks]


def check(name: str, folder: Path) -> None:
    stored = json.loads(GOLDEN.read_text()).get(machine())
    if stored is None:
        pytest.skip(f"no golden hashes for {machine()}: python -m helpers.golden adds them")
    got, expected = train_and_hash(name, folder), stored[name]
    assert got.keys() == expected.keys()
    assert [key for key in expected if got[key] != expected[key]] == []


@pytest.mark.run
@pytest.mark.parametrize("name", cases(several_ranks=False))
def test_a_run_of_one_rank_ends_with_the_golden_bits(name: str, tmp_path: Path) -> None:
    check(name, tmp_path)


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.parametrize("name", cases(several_ranks=True))
def test_a_run_of_several_ranks_ends_with_the_golden_bits(name: str, tmp_path: Path) -> None:
    check(name, tmp_path)
