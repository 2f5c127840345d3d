"""What fuzzers share: bounds on the cost of a case, how many cases there are, mutations of inputs.

`FUZZ_CASES` is the number of cases per test, few by default: then the cases are the same each time.
`FUZZ_LAST` names a file that holds the input of the running case, for one that ends the process.
"""

import gc
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings, strategies as st

from aae_dist.errors import AaeDistError

FEW_CASES = 10
NUM_CASES = int(os.environ.get("FUZZ_CASES", FEW_CASES))
LAST = os.environ.get("FUZZ_LAST")
CPU_SECONDS = 2.0
MIB = 1 << 20
COUNTS: Counter[str] = Counter()
"""Cases that ran, by test."""
SLOWEST: dict[str, float] = {}
LARGEST: dict[str, int] = {}
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")  # a list of mistakes has line breaks
_STATUS, _CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # see proc_pid_clear_refs(5)


class CostError(AssertionError):
    """A case took too much time or memory, or its error is not fit to be printed."""


def fuzz(share: float = 1.0, **strategies: st.SearchStrategy[Any]) -> Callable[[Any], Any]:
    """Return the decorator of a test that runs `share` of the cases, drawn from `strategies`."""
    few = NUM_CASES <= FEW_CASES
    options = settings(
        max_examples=max(5, round(NUM_CASES * share)),
        derandomize=few,
        database=None,
        deadline=None,
        phases=[Phase.explicit, Phase.generate, *([] if few else [Phase.shrink])],
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    return lambda test: options(given(**strategies)(test))


@contextmanager
def bounded(
    name: str,
    data: bytes = b"",
    most_bytes: int = 64 * MIB,
    most_seconds: float = CPU_SECONDS,
    kind: type[Exception] = AaeDistError,
) -> Iterator[None]:
    """Run the body as one case of `name`: only errors of ours may leave it, in bounded costs."""
    if LAST:
        Path(LAST).write_bytes(data)
    COUNTS[name] += 1
    before, began, message = _reset_peak(), time.process_time(), ""
    try:
        yield
    except kind as error:
        message = str(error)
    seconds = time.process_time() - began
    grown = _peak() - before
    if COUNTS[name] > 1:  # the first case also imports modules
        SLOWEST[name] = max(SLOWEST.get(name, 0.0), seconds)
        LARGEST[name] = max(LARGEST.get(name, 0), grown)
    if _CONTROL.search(message):
        raise CostError(f"{name}: control characters in {message!r:.2000}")
    if seconds > most_seconds and (COUNTS[name] > 1 or not most_seconds):
        raise CostError(f"{name}: {seconds:.2f} s of CPU time")
    if grown > most_bytes:
        raise CostError(f"{name}: {grown >> 20} MiB")


def _reset_peak() -> int:
    """Reset the peak of this process's memory; return the bytes held now."""
    gc.collect(0)
    with suppress(OSError):  # a kernel without it: the peak is then that of all cases so far
        _CLEAR_REFS.write_text(_RESET_PEAK)
    return _peak()


def _peak() -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    return 0


# Inputs.

_LENGTHS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


@st.composite
def mutated(draw: st.DrawFn, seeds: Sequence[bytes], others: Sequence[bytes] = ()) -> bytes:
    """Draw a valid input with up to six changes: flipped, cut, repeated, spliced, other lengths."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 6))):
        place = draw(st.integers(0, len(data)))
        end = min(len(data), place + draw(st.sampled_from((1, 2, 4, 16, 512, 4096))))
        match draw(st.integers(0, 7)):
            case 0 if data:
                data[place % len(data)] ^= 1 << draw(st.integers(0, 7))
            case 1 if data:
                data[place % len(data)] = draw(st.integers(0, 255))
            case 2:
                del data[place:]
            case 3:
                del data[place:end]
            case 4:
                data[place:place] = data[place:end] * draw(st.sampled_from((1, 3, 50)))
            case 5:
                other = draw(st.sampled_from([*seeds, *others]))
                data[place:] = other[draw(st.integers(0, len(other))) :]
            case 6:
                size, order = draw(st.sampled_from((1, 2, 4, 8))), draw(st.booleans())
                value = draw(st.sampled_from(_LENGTHS)) % (1 << 8 * size)
                data[place : place + size] = value.to_bytes(size, "big" if order else "little")
            case _:
                data[place:place] = draw(st.binary(max_size=64))
    return bytes(data)


def json_values() -> st.SearchStrategy[Any]:
    """Draw JSON values, odd ones among them; floats may be inf and nan."""
    odd = (2**31, 2**63, 2**64, -(2**63), 10**30, 1e308, -0.0, "../..", "a\x1b[31mb", "", "\u202e")
    leaves = st.one_of(
        *(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20)),
        st.sampled_from(odd),
    )
    return st.recursive(
        leaves,
        lambda inner: (
            st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=8), inner, max_size=5)
        ),
        max_leaves=20,
    )


@st.composite
def mutated_tree(draw: st.DrawFn, seeds: Sequence[Any]) -> Any:
    """Draw a JSON tree with some of its values replaced, removed, added or exchanged."""
    tree = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(1, 3))):
        tree = _change(draw, tree)
    return tree


def _change(draw: st.DrawFn, tree: Any) -> Any:
    deeper = draw(st.integers(0, 9)) > 0
    if isinstance(tree, dict) and tree and deeper:
        key = draw(st.sampled_from(list(tree)))
        match draw(st.integers(0, 6)):
            case 0:
                return {k: v for k, v in tree.items() if k != key}
            case 1:
                return {**tree, draw(st.text(max_size=10)): draw(json_values())}
            case 2:
                other = draw(st.sampled_from(list(tree)))
                return {**tree, key: tree[other]}
        return {**tree, key: _change(draw, tree[key])}
    if isinstance(tree, list) and tree and deeper:
        place = draw(st.integers(0, len(tree) - 1))
        return [*tree[:place], _change(draw, tree[place]), *tree[place + 1 :]]
    return draw(json_values())
