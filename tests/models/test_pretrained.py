"""Networks from elsewhere: without batch normalization, and with weights from a file."""

import re
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.arrays import small
from helpers.steps import SHAPE, tiny_config
from safetensors.torch import save_file
from torch import Tensor, nn

import aae_dist
from aae_dist.errors import ConfigError
from aae_dist.models import build_networks, replace_batch_norm


class Trunk(nn.Sequential):
    """What was trained elsewhere, with batch normalization."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(2)
        )


class Pretrained(nn.Module):
    def __init__(
        self, sample_shape: tuple[int, ...], num_outputs: int, how: str = "frozen"
    ) -> None:
        super().__init__()
        self.trunk = Trunk() if how == "none" else replace_batch_norm(Trunk(), how)
        for parameter in self.trunk.parameters():
            parameter.requires_grad_(False)
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(24, num_outputs))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.trunk(x))
        return out


@pytest.fixture(autouse=True)
def own_module() -> Any:
    module = types.ModuleType("pretrained_parts")
    module.Pretrained = Pretrained  # type: ignore[attr-defined]
    sys.modules["pretrained_parts"] = module
    yield
    del sys.modules["pretrained_parts"]


def trained_trunk() -> Trunk:
    torch.manual_seed(0)
    trunk = Trunk()
    for _ in range(5):
        trunk(torch.randn(16, 1, 8, 8) * 3 + 1)
    nn.init.normal_(trunk[1].weight)
    return trunk.eval()


def weights_file(folder: Path, trunk: nn.Module) -> str:
    path = folder / "trunk.safetensors"
    save_file({f"trunk.{name}": tensor for name, tensor in trunk.state_dict().items()}, path)
    return str(path)


def test_frozen_statistics_give_the_numbers_of_eval() -> None:
    trunk, x = trained_trunk(), torch.randn(4, 1, 8, 8)
    frozen = replace_batch_norm(trunk, "frozen").train()
    torch.testing.assert_close(frozen(x), trunk(x))
    assert not [n for n, p in frozen[1].named_parameters() if p.requires_grad]  # type: ignore[index]
    assert isinstance(trunk[1], nn.BatchNorm2d)  # the copy alone has changed


@pytest.mark.parametrize("num", [1, 5, 6, 48, 100])
def test_groups_keep_scale_and_offset_and_do_not_read_other_samples(num: int) -> None:
    layer = nn.BatchNorm1d(num)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    made = replace_batch_norm(nn.Sequential(layer))
    assert isinstance(made[0], nn.GroupNorm)  # type: ignore[index]
    assert torch.equal(made[0].weight, layer.weight)  # type: ignore[index]
    assert torch.equal(made[0].bias, layer.bias)  # type: ignore[index]
    x = torch.randn(4, num, 3)
    torch.testing.assert_close(made(x)[:1], made(x[:1]))
    assert not list(made.buffers())
    # (B, C) without further sides is not normalized to zero.
    assert num == 1 or not torch.allclose(made(torch.randn(4, num)), layer.bias)


def test_what_cannot_be_converted_is_named() -> None:
    with pytest.raises(ConfigError, match="group or frozen"):
        replace_batch_norm(nn.Linear(2, 2), "running")
    with pytest.raises(ConfigError, match="without running statistics cannot be frozen"):
        replace_batch_norm(nn.BatchNorm1d(3, track_running_stats=False), "frozen")


@pytest.mark.run
def test_a_run_starts_from_the_weights_and_keeps_a_frozen_trunk(tmp_path: Path) -> None:
    trunk = trained_trunk()
    path = weights_file(tmp_path, trunk)
    config = small(tmp_path, run={"name": "a"})
    config["model"]["encoder"] = {"path": "pretrained_parts:Pretrained", "weights": path}
    x = np.random.default_rng(0).random((100, 1, 8, 8), np.float32)
    done = aae_dist.train(config, x, progress=False)
    Path(path).unlink()  # the checkpoint holds all weights
    encoder = aae_dist.load_run(done.uri).as_modules()[0].encoder
    images = torch.from_numpy(x[:4])
    torch.testing.assert_close(encoder.trunk(images), trunk(images))


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (None, r"model.encoder.weights: .*no such file"),
        (b"\x80\x04pickle", r"no safetensors file .*torch.load\(FILE, weights_only=True\)"),
        ({"body.weight": torch.zeros(2)}, "'body.weight' is no weight of the network"),
        ({"trunk.0.weight": torch.zeros(2)}, r"has shape \(2,\), and the network \(6, 1, 3, 3\)"),
        ({}, "holds no weights"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path: Path, contents: Any, message: str) -> None:
    path = tmp_path / "w.safetensors"
    if isinstance(contents, bytes):
        path.write_bytes(contents)
    elif contents is not None:
        save_file(contents, path)
    own = {"path": "pretrained_parts:Pretrained", "weights": str(path)}
    config = tiny_config(model={"encoder": own})
    with pytest.raises(ConfigError, match=message):
        build_networks(config, SHAPE, torch.device("cpu"))


def test_the_example_of_the_page_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision  # takes 2 s, which no other test needs

    page = (Path(__file__).parents[2] / "docs" / "networks.md").read_text()
    blocks = re.findall(
        r"```python\n(.*?)```", page.partition("### Weights from a file")[2], re.DOTALL
    )
    backbone, conversion = (block for block in blocks if "trunk" in block)
    monkeypatch.chdir(tmp_path)
    exec(backbone, names := {})  # type: ignore[var-annotated]
    monkeypatch.setattr(sys.modules["pretrained_parts"], "Pretrained", names["Backbone"])
    resnet = torchvision.models.resnet18(weights=None)
    torch.nn.init.constant_(resnet.bn1.running_mean, 0.5)
    torch.save(resnet.state_dict(), "resnet18.pt")
    exec(conversion, {"torch": torch})
    own = {"path": "pretrained_parts:Pretrained", "weights": "trunk.safetensors"}
    config = tiny_config(model={"encoder": own}, train={"precision": "fp32"})
    encoder = build_networks(config, (3, 32, 32), torch.device("cpu")).encoder
    assert float(encoder.trunk.bn1.running_mean[0]) == 0.5  # type: ignore[union-attr,index,arg-type]
    assert torch.equal(encoder.trunk.conv1.weight, resnet.conv1.weight)  # type: ignore[union-attr,arg-type]


def test_networks_that_are_only_used_need_no_file() -> None:
    own = {"path": "pretrained_parts:Pretrained", "weights": "/nowhere"}
    config = tiny_config(model={"encoder": own})
    assert build_networks(config, SHAPE, torch.device("cpu"), trains=False).encoder is not None


def test_groups_pass_the_checks_of_own_networks_and_batch_norm_does_not() -> None:
    own = {"path": "pretrained_parts:Pretrained", "arguments": {"how": "group"}}
    build_networks(tiny_config(model={"encoder": own}), SHAPE, torch.device("cpu"))
    own["arguments"] = {"how": "none"}
    with pytest.raises(ConfigError, match="wrap the network in aae_dist.models.replace_batch_norm"):
        build_networks(tiny_config(model={"encoder": own}), SHAPE, torch.device("cpu"))
