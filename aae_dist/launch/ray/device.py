"""The device of a process that Ray gave its place."""

import ray


def own_device(device: str) -> str:
    """Return `device`, but cpu for auto where Ray has given this process no GPU.

    Ray hides GPUs from processes that own some of them, not from those that own none: with
    launch.gpus_per_worker=0 all processes of a node would take its first GPU.
    """
    if device == "auto" and ray.is_initialized() and not ray.get_gpu_ids():
        return "cpu"
    return device
