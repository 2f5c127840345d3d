import pytest
import torch

import aae_dist
from aae_dist.distributed.world import from_environment
from aae_dist.errors import ConfigError


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
@pytest.mark.parametrize("load", [from_environment, lambda device: aae_dist.load_run("x", device)])
def test_a_gpu_that_is_not_there_is_named(load: object) -> None:
    with pytest.raises(ConfigError, match="cuda, but torch sees no GPU"):
        load("cuda")
