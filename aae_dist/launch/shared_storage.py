"""A check that the workers see the run folder that the driver sees."""

import secrets

from aae_dist.errors import LaunchError
from aae_dist.storage import Storage, read_or_none

KEY = ".nonce"


def write_marker(folder: Storage) -> str:
    """Return the folder's marker token, creating it on first launch."""
    token = secrets.token_hex(16)
    if folder.create(KEY, token.encode()):
        return token
    return folder.read(KEY).decode()


def check_marker(folder: Storage, token: str) -> None:
    """Raise LaunchError unless `folder` holds the driver's token: then it is another folder."""
    if read_or_none(folder, KEY) != token.encode():
        raise LaunchError(
            f"{folder.uri}: this folder is not shared between nodes: a worker does not see what "
            "the driver wrote there. Set run.storage to s3:// (gs://, az://) or to a shared mount."
        )
