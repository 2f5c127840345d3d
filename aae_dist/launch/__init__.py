"""Starts a run here or on a Ray cluster."""

from importlib.util import find_spec

from aae_dist.config import RunConfig
from aae_dist.errors import Interrupted, LaunchError
from aae_dist.launch.ray.cluster import check_storage
from aae_dist.training.folder import Outcome

__all__ = ["launch", "start"]


def launch(config: RunConfig) -> Outcome:
    """Train the run that `config` describes and return how it ended.

    Raises:
        Interrupted: the run was asked to stop and has saved a checkpoint.
        AaeDistError: any other user error, in one clear line.
    """
    outcome = start(config)
    if outcome.state == "interrupted":
        raise Interrupted(
            f"{outcome.run_uri}: stopped at step {outcome.step} as asked, with a checkpoint of "
            "that step. The same command resumes from there."
        )
    return outcome


def start(config: RunConfig) -> Outcome:
    """Train the run as `launch` does, and return how it ended also when it was interrupted."""
    check_storage(config)
    # Imported when called: `aae-dist --help` or a wrong configuration must not load torch or Ray.
    if config.launch.kind == "local":
        from aae_dist.launch.local import launch_local

        return launch_local(config)
    if find_spec("ray") is None:
        raise LaunchError(
            "launch.kind=ray needs Ray, which is not installed. Run pip install 'aae_dist[ray]', "
            "or use launch.kind=local."
        )
    from aae_dist.launch.ray.driver import launch_ray

    return launch_ray(config)
