"""Encoder and decoder exported as programs that run without aae_dist; each one is checked."""

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from aae_dist.errors import AaeDistError
from aae_dist.inference import early_checks, trained_run
from aae_dist.storage import Storage

TOLERANCE = 1e-5  # tolerance of the check; for codes above 1 relative to the largest one
NUM_CHECKED = 64  # images that an exported program is compared with the run on
BATCHES = (1, 7, 64)  # batch sizes for the check; the program is traced with another
TRACED_BATCH = 3
METADATA_FILE = "export.json"

Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Part:
    """Encoder or decoder, with names and examples of its input."""

    name: str
    module: nn.Module
    reference: Run  # the same computation by the run itself
    input_name: str
    output_name: str
    example: Callable[[int], Tensor]  # returns an input with this number of rows


class ExportError(AaeDistError):
    """A network cannot be exported, or the exported program computes other values than the run."""


def export(
    run: trained_run.TrainedRun, out: Storage, format: str, images: Tensor | None = None
) -> dict[str, float]:
    """Write encoder and decoder, and export.json, which describes their inputs and outputs.

    The run must be on the CPU. Formats are torch (.pt2, for `torch.export.load`) and onnx. The
    check takes uint8 or float images, by default noise.

    Returns the largest absolute difference between each program and the run, over several batch
    sizes. Raises ConfigError if the format's packages are not installed, and ExportError if a
    network cannot be exported or a program computes other values.
    """
    early_checks.check_format(format)
    write, suffix = WRITERS[format]
    differences = {}
    files: list[Path] = []
    with tempfile.TemporaryDirectory(prefix="aae_dist-export-") as folder:
        for part in parts(run, images):
            path = Path(folder, f"{part.name}.{suffix}")
            with torch.no_grad():
                differences[part.name] = _difference(part, _traced(write, part, path))
            files += sorted(Path(folder).glob(f"{part.name}.*"))  # ONNX may store weights apart
        # Only when both are right: half of an export and half of an older one do not fit.
        for file in files:
            out.upload(file.name, file)
    metadata = export_metadata(run, format, suffix, differences)
    out.write(METADATA_FILE, json.dumps(metadata, indent=1).encode())
    return differences


def validation_images(run: trained_run.TrainedRun, note: Callable[[str], object]) -> Tensor | None:
    """Return validation images to check with, None where they cannot be had, which is noted."""
    try:
        data = run.open()
        return data.read(range(min(NUM_CHECKED, len(data))))[0]
    except AaeDistError as error:
        note(f"note: checked with noise, not with validation data: {error}")
        return None


def parts(run: trained_run.TrainedRun, images: Tensor | None = None) -> tuple[Part, Part]:
    """Return encoder and decoder with example inputs for tracing and the check."""
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
        wanted, got = part.reference(x).float(), run(x)
        error = (wanted - got).abs().max().item() if wanted.shape == got.shape else float("inf")
        largest = max(largest, error)
        if not error <= TOLERANCE * max(1.0, wanted.abs().max().item()):
            raise ExportError(
                f"the exported {part.name} differs by {error:.3g} from the run on a batch of {num}"
            )
    return largest


def _write_torch(part: Part, path: Path) -> Run:
    program = torch.export.export(
        part.module, (part.example(TRACED_BATCH),), dynamic_shapes=({0: torch.export.Dim("batch")},)
    )
    torch.export.save(program, path)
    loaded: Run = torch.export.load(path).module()
    return loaded


def _write_onnx(part: Part, path: Path) -> Run:
    import onnxruntime

    torch.onnx.export(
        part.module,
        (part.example(TRACED_BATCH),),
        str(path),
        dynamo=True,
        input_names=[part.input_name],
        output_names=[part.output_name],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        external_data=False,
        verbose=False,
    )
    session: Any = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(None, {part.input_name: x.numpy()})[0])


def export_metadata(
    run: trained_run.TrainedRun, format: str, suffix: str, differences: Mapping[str, float]
) -> dict[str, Any]:
    """Return the contents of export.json: inputs and outputs of the programs."""
    # A linear decoder has the range of its data, which is not bounded.
    bounds = [0, 1] if run.config.model.decoder_output == "sigmoid" else None
    images = {"shape": ["batch", *run.image_shape], "dtype": "float32", "range": bounds}
    codes = {"shape": ["batch", run.config.model.latent_dim], "dtype": "float32"}
    return {
        "run": run.config.run.name,
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
