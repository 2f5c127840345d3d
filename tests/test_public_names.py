"""The public names, and what importing them costs."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.docstrings import problems, public_modules, public_objects

import aae_dist
from aae_dist.losses import COUNT_LOSSES
from aae_dist.methods.build import METHODS


def test_public_names_exist() -> None:
    assert all(hasattr(aae_dist, name) for name in aae_dist.__all__)
    assert aae_dist.__all__ == sorted(aae_dist.__all__)
    public = [name for name in dir(aae_dist) if not name.startswith("__")]
    assert public == [name for name in aae_dist.__all__ if name != "__version__"]


def test_the_package_is_typed() -> None:
    assert (Path(aae_dist.__file__).parent / "py.typed").exists()


def test_public_functions_state_arguments_and_errors() -> None:
    for name in ("load_config", "load_run", "pack", "pull", "push", "submit", "train"):
        text = getattr(aae_dist, name).__doc__
        assert "Args:" in text, name
        assert "Raises:" in text, name
        for argument in inspect.signature(getattr(aae_dist, name)).parameters:
            assert f"{argument}:" in text, f"{name}: {argument}"


def test_public_names_have_arguments_shapes_and_errors() -> None:
    found = [each for m in [aae_dist, *public_modules(aae_dist)] for each in public_objects(m)]
    assert len(found) > 80
    assert [text for name, each in found for text in problems(name, each)] == []


def test_sources_of_formulas_are_named() -> None:
    for module in (aae_dist.losses, aae_dist.metrics):
        text = Path(module.__file__ or "").read_text()
        assert re.search(r"arXiv|et al\.|doi", text), module.__name__


def test_losses_methods_and_priors_name_their_source() -> None:
    pairs = [vars(pair).values() for pair in aae_dist.losses.ADVERSARIES.values()]
    losses = [*COUNT_LOSSES.values(), *(loss for pair in pairs for loss in pair)]
    methods = [each for name, each in METHODS.items() if name != "autoencoder"]
    priors = [aae_dist.priors.MixturePrior, aae_dist.priors.SwissRollPrior]
    for found in [*losses, *methods, *priors]:
        module = sys.modules[found.__module__].__doc__ or ""
        text = (
            f"{found.__doc__} {module if found.__module__.startswith('aae_dist.methods') else ''}"
        )
        assert re.search(r"arXiv|et al\.|AAE", text), found.__name__


def undocumented(images: torch.Tensor, count: int) -> torch.Tensor:
    """Return the images."""
    raise ValueError(count)


def test_an_incomplete_docstring_is_found() -> None:
    assert list(problems("f", undocumented)) == [
        "f: argument images has no shape",
        "f: argument count is not explained",
        "f: the result has no shape",
        "f: raises ValueError, which is not said",
    ]


PARTS = """
import sys
import aae_dist
for name in aae_dist.__all__:
    getattr(aae_dist, name)
print([m for m in ("ray", "wandb", "optuna", "pyarrow") if m in sys.modules])
"""


@pytest.mark.run
def test_all_public_names_are_there_without_ray() -> None:
    out = subprocess.run([sys.executable, "-c", PARTS], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_importing_the_package_loads_neither_torch_nor_ray_nor_wandb() -> None:
    code = "import sys, aae_dist; print([m for m in ('torch', 'ray', 'wandb') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


ENGINE_WITHOUT_RAY = """
import sys
for name in ("ray", "wandb", "optuna", "pyarrow"):
    sys.modules[name] = None  # what Python holds for a module that cannot be imported
from aae_dist.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.run
def test_the_engine_trains_where_ray_and_wandb_are_not_installed(tmp_path: object) -> None:
    items = ["run.name=x", "data.train=builtin://digits/train", "train.steps=2"]
    command = [sys.executable, "-c", ENGINE_WITHOUT_RAY, "train", *items, f"run.storage={tmp_path}"]
    out = subprocess.run([*command, "launch.kind=local"], capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    out = subprocess.run([*command, "run.name=y"], capture_output=True, text=True)
    assert out.returncode == 2
    assert "pip install 'aae_dist[ray]'" in out.stderr
