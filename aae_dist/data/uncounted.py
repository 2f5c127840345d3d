"""Shards that could not be counted, told together when all the others have been."""

from aae_dist.errors import DataError, ShardError

_NUM_TOLD = 20
_MAX_OUT_OF_REACH = 20
"""Shards in a row that cannot be had before the server is given up: each may take minutes."""
_OUT_OF_REACH = frozenset(("unreachable", "forbidden"))


class Uncounted:
    """Collects the errors of one list of shards.

    Args:
        num_shards: Shards in the list.
        advice: What to do about them, a whole sentence.
    """

    def __init__(self, num_shards: int, advice: str) -> None:
        self._num_shards, self._advice = num_shards, advice
        self._first: list[str] = []
        self._num = self._in_a_row = 0

    def add(self, error: ShardError) -> None:
        """Note a shard that cannot be counted.

        Raises:
            DataError: Many in a row are out of reach, so the rest is as well.
        """
        self._num += 1
        self._in_a_row = self._in_a_row + 1 if error.reason in _OUT_OF_REACH else 0
        if len(self._first) < _NUM_TOLD:
            self._first.append(f"  {error}")
        if self._in_a_row == _MAX_OUT_OF_REACH:
            raise self._error(
                f"{_MAX_OUT_OF_REACH} shards in a row cannot be had; the rest was not tried:"
            )

    def counted(self) -> None:
        """Note that a shard between them was counted."""
        self._in_a_row = 0

    def check(self) -> None:
        """Raise DataError that names the first of them, if there are any."""
        if self._num == 1:
            raise DataError(f"{self._first[0].strip()} {self._advice}")
        if self._num:
            raise self._error(f"{self._num} of {self._num_shards} shards cannot be counted:")

    def _error(self, head: str) -> DataError:
        more = [f"  and {self._num - _NUM_TOLD} more"] if self._num > _NUM_TOLD else []
        return DataError("\n".join([head, *self._first, *more, self._advice]))
