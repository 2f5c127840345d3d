"""Keys of objects in a bucket, as other programs may leave them there."""

from collections.abc import Iterator
from xml.sax.saxutils import escape

import pytest
from helpers.fuzzing import bounded, fuzz
from helpers.object_server import ObjectServer, serving
from hypothesis import example, strategies as st

from aae_dist.storage import open_storage

PARTS = st.one_of(
    st.sampled_from(("a", "0", "-b", "x y", ".", "..", "", "%2F", "a%00", "\x1b[31m", "\x7f", "é")),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=6),
    st.sampled_from(("a\nb", "\t", "\\", "\u202e", "x" * 300, "&amp;", "<Key>", "]]>", "#", "?")),
)
KEYS = st.lists(st.lists(PARTS, min_size=1, max_size=3).map("/".join), min_size=1, max_size=6)


@pytest.fixture(scope="module")
def server() -> Iterator[ObjectServer]:
    with serving() as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", server.address)
        patch.setenv("AWS_ACCESS_KEY_ID", "k")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "s")
        patch.setenv("AWS_REGION", "us-east-1")
        yield server


@fuzz(share=0.2, keys=KEYS)
@example(["a/b\x1b[31m", "a/c"])
@example(["a//b", "a/c", "a/../x"])
def test_keys_in_a_bucket(server: ObjectServer, keys: list[str]) -> None:
    server.files.clear()
    for key in keys:
        # A server escapes what XML has names for; control characters stand as they are.
        server.files[f"/b/d/{escape(key)}"] = b"x"
    for top in ("s3://b/d", "s3://b"):
        folder = open_storage(top, probe=True)
        with bounded("listing", repr(keys).encode()):
            found = {entry.key.removeprefix("d/") for entry in folder.list()}
            # What may be read is listed, unless a line reports what is left out.
            simple = {key for key in keys if key.replace("/", "").isalnum() and key.isascii()}
            plain = {key for key in simple if "" not in key.split("/") and key[0] >= "0"}
            assert plain <= found
        with bounded("listing", repr(keys).encode()):
            folder.folders()
