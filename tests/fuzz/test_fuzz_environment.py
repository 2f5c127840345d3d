"""Variables that storage clients and W&B read: any text that a shell can set."""

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from helpers.fuzzing import bounded, fuzz
from hypothesis import example, strategies as st

from aae_dist.config import RunConfig, load_config
from aae_dist.storage import clients, open_storage
from aae_dist.tracking.wandb_sink import decide_mode, has_key
from aae_dist.utils.text import READ_BY_CLIENTS, redact, strip_environment

SCHEMES = {
    "s3": {
        **{"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_REGION": "us-east-1"},
        **{"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "a-long-secret"},
    },
    "az": {
        **{"AZURE_STORAGE_ACCOUNT_NAME": "account", "AZURE_STORAGE_ACCOUNT_KEY": "YWJjZA=="},
        "AZURE_STORAGE_ENDPOINT": "http://127.0.0.1:9/account",
    },
}
MORE = {
    "s3": (
        *("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT", "AWS_DEFAULT_REGION", "AWS_SESSION_TOKEN"),
        *("AWS_TOKEN", "AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_SKIP_SIGNATURE", "AWS_BUCKET"),
        *("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ROLE_ARN"),
        *("AWS_ALLOW_HTTP", "AWS_PROFILE", "AWS_CHECKSUM_ALGORITHM", "AWS_CONDITIONAL_PUT"),
        *("AWS_S3_EXPRESS", "AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "AWS_METADATA_ENDPOINT", "AWS_X"),
        *(
            "AWS_REQUEST_PAYER",
            "AWS_UNSIGNED_PAYLOAD",
            "AWS_DISABLE_TAGGING",
            "AWS_COPY_IF_NOT_EXISTS",
        ),
    ),
    "az": (
        *("AZURE_STORAGE_SAS_TOKEN", "AZURE_STORAGE_USE_EMULATOR", "AZURE_CLIENT_ID", "AZURE_X"),
        *("AZURE_TENANT_ID", "AZURE_CLIENT_SECRET", "AZURE_ENDPOINT", "AZURE_AUTHORITY_HOST"),
        *("AZURE_MSI_ENDPOINT", "AZURE_STORAGE_TOKEN", "AZURE_FEDERATED_TOKEN_FILE"),
        *(
            "AZURE_STORAGE_CLIENT_ID",
            "AZURE_SKIP_SIGNATURE",
            "AZURE_CONTAINER_NAME",
            "IDENTITY_HEADER",
        ),
    ),
}
VALUES = st.one_of(
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30),
    st.binary(max_size=12).map(lambda raw: os.fsdecode(raw.replace(b"\0", b""))),
    st.sampled_from(
        (
            *(
                "",
                " ",
                "true",
                "maybe",
                "host:9000",
                "http://",
                "http://[::1",
                "http://127.0.0.1:9",
            ),
            *("https://127.0.0.1:9/%zz", "http://127.0.0.1:99999", "http://a b", "us east", "YWJj"),
            *(
                "http://127.0.0.1:9?x=1#y",
                "http://k:s@127.0.0.1:9",
                "etag",
                "/dev/null",
                "/",
                "x" * 5000,
            ),
            *(
                "http://\u2603.example",
                "crc32",
                "sv=1&sig=a%2Fb",
                "?sig=",
                "&=&",
                "=",
                "sig\n",
                "[::1]:9",
            ),
        )
    ),
)


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in filter(READ_BY_CLIENTS.search, list(os.environ)):
        monkeypatch.delenv(name)
    none = {"max_retries": 0, "retry_timeout": timedelta(milliseconds=1)}
    monkeypatch.setattr(clients, "PROBE", none)
    monkeypatch.setattr(clients, "PROBE_SECONDS", 0.5)


def pairs(names: Any) -> st.SearchStrategy[dict[str, str]]:
    return st.dictionaries(st.sampled_from(sorted(names)), VALUES, min_size=1, max_size=3)


def used(scheme: str, changed: dict[str, str]) -> None:
    """Use a store with some variables changed; nothing outside this machine is asked."""
    clients._shared.cache_clear()
    before = dict(os.environ)
    os.environ.update({**SCHEMES[scheme], **changed})
    try:
        with bounded(f"{scheme} variables", repr(changed).encode("utf-8", "surrogatepass")):
            open_storage(f"{scheme}://bucket/x", probe=True).read("y")
    except FileNotFoundError:
        pass
    finally:
        os.environ.clear()
        os.environ.update(before)


@fuzz(share=0.3, changed=pairs((*SCHEMES["s3"], *MORE["s3"])))
@example({"AWS_ENDPOINT_URL": "host:9000"})
@example({"AWS_SECRET_ACCESS_KEY": "\udc80"})
def test_variables_of_s3(changed: dict[str, str]) -> None:
    used("s3", changed)


@fuzz(share=0.3, changed=pairs((*SCHEMES["az"], *MORE["az"])))
def test_variables_of_azure(changed: dict[str, str]) -> None:
    used("az", changed)


WANDB = (
    *("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_MODE", "WANDB_PROJECT", "WANDB_ENTITY", "NETRC"),
    *("WANDB_DIR", "WANDB_DISABLED", "WANDB_TAGS", "WANDB_NAME", "WANDB_RUN_ID", "WANDB_SERVICE"),
)


@pytest.fixture(scope="module")
def config() -> RunConfig:
    items = ["data.train=builtin://digits/train", "train.steps=1", "run.storage=/r", "run.name=x"]
    return load_config([], items).config


@fuzz(
    environment=pairs(WANDB),
    netrc=st.binary(max_size=60),
    wanted=st.sampled_from(("auto", "online")),
)
def test_variables_of_wandb(
    config: RunConfig, tmp_path_factory: Any, environment: Any, netrc: bytes, wanted: str
) -> None:
    home = Path(tmp_path_factory.getbasetemp())
    (home / ".netrc").write_bytes(b"machine api.wandb.ai " + netrc)
    with bounded("W&B variables", repr(environment).encode("utf-8", "surrogatepass")):
        mode, line = decide_mode(wanted, environment, True, home)
        assert mode in ("online", "offline", "disabled")
        assert "\n" not in line
        has_key(environment, home)
        redact(f"a {list(environment.values())} b", environment)


@fuzz(environment=pairs((*WANDB, *SCHEMES["s3"], *MORE["az"])))
def test_no_secret_is_printed(environment: dict[str, str]) -> None:
    with bounded("redaction", repr(environment).encode("utf-8", "surrogatepass")):
        shown = redact(" ".join(f"<{value}>" for value in environment.values()), environment)
        secret = environment.get("WANDB_API_KEY", "").strip()
        if len(secret) >= 8 and not secret.startswith(("/", "~", "http")):
            assert f"<{secret}>" not in shown


@fuzz(changed=pairs((*WANDB, *SCHEMES["s3"])))
def test_stripping(changed: dict[str, str]) -> None:
    before = dict(os.environ)
    os.environ.update(changed)
    try:
        with bounded("stripping", repr(changed).encode("utf-8", "surrogatepass")):
            strip_environment()
            names = [name for name in changed if READ_BY_CLIENTS.search(name)]
            assert all(os.environ[n] == os.environ[n].strip() for n in names if n in os.environ)
    finally:
        os.environ.clear()
        os.environ.update(before)
