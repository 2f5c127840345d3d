"""A worker must see the folder that the driver sees."""

import pytest

from aae_dist.errors import LaunchError
from aae_dist.storage import open_storage
from aae_dist.training.folder import check_marker, write_marker


def test_the_word_stays_over_launches(tmp_path):
    folder = open_storage(str(tmp_path))
    word = write_marker(folder)
    assert write_marker(folder) == word
    check_marker(folder, word)


def test_another_folder_of_the_same_name_is_not_shared(tmp_path):
    word = write_marker(open_storage(str(tmp_path / "driver")))
    empty, stale = open_storage(str(tmp_path / "empty")), open_storage(str(tmp_path / "stale"))
    write_marker(stale)
    for folder in (empty, stale):
        with pytest.raises(LaunchError, match="not shared between nodes.*s3://"):
            check_marker(folder, word)


def test_a_bucket_is_shared(s3):
    uri = s3() + "/runs/a"
    check_marker(open_storage(uri), write_marker(open_storage(uri)))


def test_a_marker_that_is_no_text_is_a_folder_that_is_not_shared(tmp_path):
    folder = open_storage(str(tmp_path))
    folder.write(".nonce", b"\x80\xff")
    check_marker(folder, write_marker(folder))
    with pytest.raises(LaunchError, match="not shared"):
        check_marker(folder, "another")
