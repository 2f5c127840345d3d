"""The loop of docs/own-loop.md ends with the weights of `aae_dist.train`, bit for bit."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import aae_dist

PAGE = Path(__file__).parents[2] / "docs" / "own-loop.md"


@pytest.mark.run
@pytest.mark.timeout(180)
def test_the_documented_loop_is_that_of_a_run(tmp_path: Path) -> None:
    names: dict[str, Any] = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as launch.cpus_per_worker: another number would round otherwise
    try:
        for code in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
            exec(compile(code, PAGE.name, "exec"), names)
    finally:
        torch.set_num_threads(threads)
    config = names["config"]
    config = config.model_copy(
        update={"run": config.run.model_copy(update={"storage": str(tmp_path)})}
    )
    result = aae_dist.train(config, progress=False)
    encoder, decoder = result.run.as_modules()
    for own, trained in (
        (names["networks"].encoder, encoder),
        (names["networks"].decoder, decoder),
    ):
        expected = list(trained.state_dict().values())
        found = list(own.state_dict().values())
        assert len(found) == len(expected) > 2
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
