"""A trained run's encoder and decoder as programs that run without aae_dist, each one checked."""

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from aae_dist.errors import AaeDistError, ConfigError
from aae_dist.inference.trained_run import TrainedRun
from aae_dist.storage import Storage

TOLERANCE = 1e-5
"""Largest difference, of codes relative to the largest one above 1, that is let pass."""
BATCHES = (1, 7, 64)
"""Batch sizes that a program is checked with; it was traced with another."""
TRACED = 3
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
ABOUT = "export.json"

Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Part:
    """Encoder or decoder, and what it takes and gives."""

    name: str
    module: nn.Module
    truth: Run
    """What the run itself makes of an input."""
    input_name: str
    output_name: str
    example: Callable[[int], Tensor]
    """Makes an input of so many rows."""


class ExportError(AaeDistError):
    """A network cannot become a program, or the program gives other numbers than the run."""


def check_format(name: str) -> None:
    """Raise ConfigError when what the format needs is not installed."""
    absent = [p for p in ONNX_PACKAGES if find_spec(p) is None] if name == "onnx" else []
    if absent:
        raise ConfigError(
            f"--format onnx needs {', '.join(absent)}: pip install {' '.join(ONNX_PACKAGES)} "
            "(or use --format torch)"
        )


def export(
    run: TrainedRun, out: Storage, format: str, images: Tensor | None = None
) -> dict[str, float]:
    """Write encoder and decoder, and export.json, which says what they take and give.

    Args:
        run: the run, on the CPU.
        out: folder to write.
        format: torch (.pt2, for `torch.export.load`) or onnx.
        images: uint8 or float images to check with; by default noise.

    Returns:
        Largest absolute difference of each program to the run, over batches of several sizes.

    Raises:
        ConfigError: the format's packages are not installed.
        ExportError: a network cannot be exported, or a program gives other numbers than the run.
    """
    check_format(format)
    write, suffix = WRITERS[format]
    differences = {}
    made: list[Path] = []
    with tempfile.TemporaryDirectory(prefix="aae_dist-export-") as folder:
        for part in parts(run, images):
            path = Path(folder, f"{part.name}.{suffix}")
            with torch.no_grad():
                differences[part.name] = _difference(part, _traced(write, part, path))
            made += sorted(Path(folder).glob(f"{part.name}.*"))  # ONNX may keep weights apart
        # Only when both are right: half of an export beside half of an older one fits nothing.
        for file in made:
            out.upload(file.name, file)
    out.write(ABOUT, json.dumps(_about(run, format, suffix, differences), indent=1).encode())
    return differences


def parts(run: TrainedRun, images: Tensor | None = None) -> tuple[Part, Part]:
    """Return encoder and decoder with inputs to trace and check them with."""
    encoder, decoder = run.as_modules()
    generator = torch.Generator().manual_seed(0)

    def pixels(num: int) -> Tensor:
        if images is None:
            return torch.rand(num, *run.image_shape, generator=generator)
        chosen = images[torch.randint(len(images), (num,), generator=generator)]
        return chosen.float() / 255 if chosen.dtype == torch.uint8 else chosen

    def codes(num: int) -> Tensor:
        return run.prior.sample(num, generator)

    return (
        Part("encoder", encoder, run.encode, "pixels", "codes", pixels),
        Part("decoder", decoder, run.decode, "codes", "pixels", codes),
    )


def _traced(write: Callable[[Part, Path], Run], part: Part, path: Path) -> Run:
    try:
        return write(part, path)
    except Exception as error:  # torch raises many classes, most of them private
        reason = " ".join(str(error).split())
        raise ExportError(
            f"the {part.name} cannot be exported for batches of any size ({reason:.300}); in a "
            "network of your own write x.shape[0] instead of len(x), and no branch on values"
        ) from error


def _difference(part: Part, run: Run) -> float:
    largest = 0.0
    for num in BATCHES:
        x = part.example(num)
        wanted, got = part.truth(x).float(), run(x)
        error = (wanted - got).abs().max().item() if wanted.shape == got.shape else float("inf")
        largest = max(largest, error)
        if not error <= TOLERANCE * max(1.0, wanted.abs().max().item()):
            raise ExportError(
                f"the exported {part.name} differs by {error:.3g} from the run on a batch of {num}"
            )
    return largest


def _write_torch(part: Part, path: Path) -> Run:
    program = torch.export.export(
        part.module, (part.example(TRACED),), dynamic_shapes=({0: Dim("batch")},)
    )
    torch.export.save(program, path)
    loaded: Run = torch.export.load(path).module()
    return loaded


def _write_onnx(part: Part, path: Path) -> Run:
    import onnxruntime

    torch.onnx.export(
        part.module,
        (part.example(TRACED),),
        str(path),
        dynamo=True,
        input_names=[part.input_name],
        output_names=[part.output_name],
        dynamic_shapes=({0: Dim("batch")},),
        external_data=False,
        verbose=False,
    )
    session: Any = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(None, {part.input_name: x.numpy()})[0])


def _about(
    run: TrainedRun, format: str, suffix: str, differences: Mapping[str, float]
) -> dict[str, Any]:
    channels, height, width = run.image_shape
    # Of a linear decoder, the data's own range: nobody has bounded it.
    bounds = [0, 1] if run.config.model.decoder_output == "sigmoid" else None
    images = {"shape": ["batch", channels, height, width], "dtype": "float32", "range": bounds}
    codes = {"shape": ["batch", run.config.model.latent_dim], "dtype": "float32"}
    return {
        "run": run.uri,
        "step": run.step,
        "format": format,
        "torch": torch.__version__,
        "encoder": {"file": f"encoder.{suffix}", "pixels": images, "codes": codes},
        "decoder": {"file": f"decoder.{suffix}", "codes": codes, "pixels": images},
        "largest_difference": dict(differences),
    }


WRITERS: Mapping[str, tuple[Callable[[Part, Path], Run], str]] = {
    "torch": (_write_torch, "pt2"),
    "onnx": (_write_onnx, "onnx"),
}
