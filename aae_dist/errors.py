"""All errors that aae_dist raises on purpose.

AaeDistError
 |- ConfigError            the run's configuration is wrong; the message names the key and the fix
 |- DataError              shards, manifests or samples are missing, damaged or not as declared
 |- CheckpointError        no checkpoint verifies, or one does not fit the run that resumes
 |- LaunchError            the run cannot start here: storage, resources, a second writer
 |- TrainingDivergedError  too many updates in a row had non-finite gradients
 `- Interrupted            a stop was asked for and a checkpoint was saved

A message says what, what was got, and what to do. Each class carries its exit code.
"""


class AaeDistError(Exception):
    """Base of all errors that aae_dist raises on purpose; catch this one."""

    exit_code = 2


class ConfigError(AaeDistError):
    """The configuration is wrong."""


class DataError(AaeDistError):
    """Data is missing, damaged, or not what the manifest or the configuration says."""


class CheckpointError(AaeDistError):
    """A checkpoint cannot be used: it does not verify or does not fit this run."""


class LaunchError(AaeDistError):
    """The run cannot start or go on in this place."""


class TrainingDivergedError(AaeDistError):
    """Gradients were not finite for `train.max_skipped_updates` updates in a row."""

    exit_code = 3


class Interrupted(AaeDistError):
    """Training was asked to stop and has saved a checkpoint; the same command goes on from it."""

    exit_code = 4


def by_name(name: str) -> type[AaeDistError]:
    """Return the error class called `name`: errors cross processes as (name, message) pairs."""
    classes = {c.__name__: c for c in AaeDistError.__subclasses__()}
    return classes.get(name, AaeDistError)
