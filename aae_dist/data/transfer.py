"""Batches to the device, beside what it computes: pinned memory, and a stream of their own."""

import contextlib
from collections.abc import Sequence

import torch
from torch import Tensor


class Transfer:
    """Sends tensors to one device from the thread that prepares batches.

    On CUDA the copies run in a side stream while the last batch is trained on; pinned memory is
    taken from torch's pool, which gives a block out again when its copy is done, so that as many
    blocks are in use as batches are prepared ahead. On a CPU nothing is done.

    Args:
        device: Where tensors go.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def sending(self) -> contextlib.AbstractContextManager[object]:
        """Return the context in which the sender works on the device."""
        return torch.cuda.stream(self._stream) if self._stream else contextlib.nullcontext()

    def send(self, parts: Sequence[Tensor]) -> tuple[list[Tensor], "torch.cuda.Event | None"]:
        """Begin to copy tensors; return them, and what tells when they are there."""
        if self._stream is None:
            return list(parts), None
        with self.sending():
            pinned = [part.pin_memory() if part.device.type == "cpu" else part for part in parts]
            sent = [part.to(self._device, non_blocking=True) for part in pinned]
            return sent, self._stream.record_event()

    def receive(self, parts: Sequence[Tensor], arrived: "torch.cuda.Event | None") -> None:
        """Let the caller's stream wait for the tensors; the host does not wait."""
        if arrived is None:
            return
        stream = torch.cuda.current_stream(self._device)
        stream.wait_event(arrived)
        for part in parts:
            # Their memory belongs to the side stream: it may not take it back too early.
            part.record_stream(stream)
