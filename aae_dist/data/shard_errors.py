"""What can be wrong with a shard as a whole, in one line each."""

from collections.abc import Iterator
from contextlib import contextmanager

from aae_dist.data.manifest import Shard
from aae_dist.errors import DataError, LaunchError, ShardError, StorageError

_AGAIN = "write the manifest again with: aae-dist data index PATTERN"


@contextmanager
def told(shard: Shard) -> Iterator[None]:
    """Turn the storage's errors about a shard into ShardError, those about all into DataError."""
    try:
        yield
    except FileNotFoundError:
        message = f"{shard.url}: no such shard; check the path or the manifest."
        raise ShardError(message, "missing") from None
    except StorageError as error:
        if error.reason == "other":
            raise DataError(str(error)) from error
        raise ShardError(str(error), error.reason) from error
    except LaunchError as error:
        raise DataError(str(error)) from error


def check_size(shard: Shard, size: int) -> None:
    """Raise ShardError when the file has another size than the manifest says (-1: anything)."""
    if shard.bytes not in (-1, size):
        raise ShardError(
            f"{shard.url}: the shard has {size} bytes, the manifest says {shard.bytes}; {_AGAIN}",
            "size",
        )
