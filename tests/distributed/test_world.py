import pytest
import torch

import aae_dist
from aae_dist.distributed.world import from_environment
from aae_dist.errors import ConfigError, LaunchError
from aae_dist.launch.ending import WorkersFailedError
from aae_dist.launch.local import process_group


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
@pytest.mark.parametrize("load", [from_environment, lambda device: aae_dist.load_run("x", device)])
def test_a_gpu_that_is_not_there_is_named(load: object) -> None:
    with pytest.raises(ConfigError, match="cuda, but torch sees no GPU"):
        load("cuda")


ALL = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"WORLD_SIZE": "x"}, "WORLD_SIZE='x' is not a number"),
        ({"RANK": "-1"}, "RANK='-1' is not a number"),
        ({"LOCAL_RANK": "a"}, "LOCAL_RANK='a' is not a number"),
        ({"LOCAL_WORLD_SIZE": "1.0"}, "LOCAL_WORLD_SIZE='1.0' is not a number"),
        ({"RANK": "5"}, "RANK=5 is no rank of WORLD_SIZE=1"),
        ({**ALL, "RANK": "2"}, "RANK=2 is no rank of WORLD_SIZE=2"),
        ({**ALL, "RANK": ""}, "WORLD_SIZE=2, but RANK is not set"),
    ],
)
def test_variables_that_fit_no_world_are_one_line(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], words: str
) -> None:
    for name in (*ALL, "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(LaunchError, match=words) as caught:
        from_environment("cpu")
    assert "torchrun" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("port", ["x", ""])
def test_ranks_that_cannot_meet_say_where(monkeypatch: pytest.MonkeyPatch, port: str) -> None:
    for name, value in (ALL | {"RANK": "1", "MASTER_PORT": port}).items():
        monkeypatch.setenv(name, value)
    with (
        pytest.raises(WorkersFailedError, match=r"the 2 ranks cannot meet .* 127.0.0.1:") as e,
        process_group(from_environment("cpu")),
    ):
        pass
    assert "\n" not in str(e.value)
