"""Proof that the workers see the run folder that the driver sees."""

import secrets

from aae_dist.errors import LaunchError
from aae_dist.storage import Storage, read_or_none

KEY = ".nonce"


def leave(folder: Storage) -> str:
    """Return the folder's random word; the first launch writes it, later ones find it."""
    word = secrets.token_hex(16)
    if folder.create(KEY, word.encode()):
        return word
    return folder.read(KEY).decode()


def check(folder: Storage, word: str) -> None:
    """Raise LaunchError unless `folder` holds the driver's word: then it is another folder."""
    if read_or_none(folder, KEY) != word.encode():
        raise LaunchError(
            f"{folder.uri}: this folder is not shared between nodes: a worker does not see what "
            "the driver wrote there. Set run.storage to s3:// (gs://, az://) or to a shared mount."
        )
