"""Values of the environment are checked before a native client sees them, in one line."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from aae_dist.errors import LaunchError, StorageError
from aae_dist.storage import open_storage
from aae_dist.storage.bucket import bucket_errors
from aae_dist.utils.text import READ_BY_CLIENTS, strip_environment

GOOD = {
    "s3": {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_ACCESS_KEY_ID": "key-of-a-user",
        "AWS_SECRET_ACCESS_KEY": "secret-of-a-user",
        "AWS_REGION": "us-east-1",
    },
    "az": {
        "AZURE_STORAGE_ACCOUNT_NAME": "account",
        "AZURE_STORAGE_ACCOUNT_KEY": "YWJjZA==",
        "AZURE_STORAGE_ENDPOINT": "http://127.0.0.1:9/account",
    },
}


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in filter(READ_BY_CLIENTS.search, list(os.environ)):
        monkeypatch.delenv(name)


def set_all(monkeypatch: pytest.MonkeyPatch, scheme: str, **changed: str) -> None:
    for name, value in {**GOOD[scheme], **changed}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("scheme", "name", "value"),
    [
        ("s3", "AWS_ENDPOINT_URL", "host:9000"),
        ("s3", "AWS_ENDPOINT_URL", "http://"),
        ("s3", "AWS_ENDPOINT_URL", "http://h:99999"),
        ("s3", "AWS_ENDPOINT_URL", "http://[::1"),
        ("s3", "AWS_ENDPOINT_URL", "http://h ost:9000"),
        ("s3", "AWS_ENDPOINT_URL", "http://key:canary@h:9000"),
        ("s3", "AWS_ENDPOINT_URL", "ftp://h"),
        ("s3", "AWS_ENDPOINT_URL_S3", "host:9000"),
        ("s3", "AWS_CONTAINER_CREDENTIALS_FULL_URI", "host"),
        ("s3", "AWS_REGION", "us east 1"),
        ("s3", "AWS_DEFAULT_REGION", "us/east"),
        ("s3", "AWS_ACCESS_KEY_ID", "canary\nmore"),
        ("s3", "AWS_SECRET_ACCESS_KEY", "canary\u044f"),
        ("s3", "AWS_SESSION_TOKEN", "canary\x01"),
        ("s3", "AWS_SKIP_SIGNATURE", "maybe"),
        ("az", "AZURE_STORAGE_ACCOUNT_NAME", "my account"),
        ("az", "AZURE_STORAGE_ENDPOINT", "host:9000"),
        ("az", "AZURE_STORAGE_ACCOUNT_KEY", "canary"),
    ],
)
def test_an_impossible_value_is_one_line_that_names_its_variable(
    monkeypatch: pytest.MonkeyPatch, scheme: str, name: str, value: str
) -> None:
    set_all(monkeypatch, scheme, **{name: value})
    with pytest.raises(LaunchError) as caught:
        open_storage(f"{scheme}://bucket/x", 1.0, probe=True).read("y")
    text = str(caught.value)
    assert name in text
    assert "\n" not in text
    assert len(text) < 300
    assert "canary" not in text
    assert caught.value.exit_code == 2


def test_an_address_without_a_scheme_is_told_the_right_one(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, "s3", AWS_ENDPOINT_URL="minio:9000")
    with pytest.raises(LaunchError, match=r"AWS_ENDPOINT_URL='minio:9000' .*http://minio:9000"):
        open_storage("s3://bucket")


@pytest.mark.parametrize("name", sorted(GOOD["s3"]))
@pytest.mark.parametrize("after", [" ", "\n", "\r\n", "\t"])
def test_blanks_and_line_breaks_around_a_value_do_no_harm(
    monkeypatch: pytest.MonkeyPatch, name: str, after: str
) -> None:
    set_all(monkeypatch, "s3", **{name: f" {GOOD['s3'][name]}{after}"})
    open_storage("s3://bucket/x")
    assert os.environ[name] == GOOD["s3"][name]


def test_an_empty_value_is_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", " \n")
    monkeypatch.setenv("MY_OWN", " \n")
    strip_environment()
    assert "WANDB_API_KEY" not in os.environ
    assert os.environ["MY_OWN"] == " \n"


def test_variables_of_another_store_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, "az", AWS_ENDPOINT_URL="host:9000")
    open_storage("az://container/x")


def test_a_panic_of_a_native_client_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SOMETHING_NEW", "odd")
    panic = type("PanicException", (BaseException,), {})
    with (
        pytest.raises(
            StorageError, match=r"^s3://b: [^\n]*unwrap on a value[^\n]*AWS_SOMETHING_NEW"
        ),
        bucket_errors("s3://b"),
    ):
        raise panic("called unwrap\n on a value")
    with pytest.raises(KeyboardInterrupt), bucket_errors("s3://b"):
        raise KeyboardInterrupt


class Server(ThreadingHTTPServer):
    """Serves one text, or redirects to `target`."""

    daemon_threads = True
    target = ""
    num_requests = 0


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:  # noqa: N802
        self.server.num_requests += 1
        target, body = self.server.target, b"the metadata"
        self.send_response(307 if target else 200)
        if target:
            self.send_header("Location", target + self.path)
            body = b""
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Last-Modified", "Mon, 30 Nov 2026 00:00:00 GMT")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(host: str) -> Iterator[tuple[Server, str]]:
    with Server((host, 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server, f"http://{host}:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", None])
def test_a_redirect_of_a_plain_http_server_to_another_host_is_not_followed(
    monkeypatch: pytest.MonkeyPatch, name: str | None
) -> None:
    with serving("127.0.0.1") as (first, address), serving("127.0.0.2") as (second, other):
        first.target = other
        set_all(monkeypatch, "s3", **({name: address} if name else {}))
        folder = open_storage("s3://bucket/x" if name else address, probe=True)
        with pytest.raises(StorageError, match="redirects to another host"):
            folder.read("y")
        assert first.num_requests > 0
        assert second.num_requests == 0
        first.target = ""
        assert folder.read("y") == b"the metadata"
