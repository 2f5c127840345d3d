"""A worker must see the folder that the driver sees."""

import pytest

from aae_dist.errors import LaunchError
from aae_dist.launch import shared_storage as nonce
from aae_dist.storage import open_storage


def test_the_word_stays_over_launches(tmp_path):
    folder = open_storage(str(tmp_path))
    word = nonce.leave(folder)
    assert nonce.leave(folder) == word
    nonce.check(folder, word)


def test_another_folder_of_the_same_name_is_not_shared(tmp_path):
    word = nonce.leave(open_storage(str(tmp_path / "driver")))
    empty, stale = open_storage(str(tmp_path / "empty")), open_storage(str(tmp_path / "stale"))
    nonce.leave(stale)
    for folder in (empty, stale):
        with pytest.raises(LaunchError, match="not shared between nodes.*s3://"):
            nonce.check(folder, word)


def test_a_bucket_is_shared(s3):
    uri = s3() + "/runs/a"
    nonce.check(open_storage(uri), nonce.leave(open_storage(uri)))
