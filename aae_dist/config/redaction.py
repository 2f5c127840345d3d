"""Redaction of secrets in printed lines, files and trackers."""

import logging
import os
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

HIDDEN = "***"
SHORTEST = 8
"""Shorter values are not redacted: they would hide harmless words."""
_SECRET_NAME = re.compile(r"(SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|ACCESS_?KEY)", re.I)
_HARMLESS_NAME = re.compile(r"(_FILE|_PATH|_MODE|_DIR|_URL|_URI|_TIMEOUT|_PROVIDER)$", re.I)
_USER_INFO = re.compile(r"(?<=://)[^/@\s\"']*@")
# Web addresses only: in a pattern of a bucket's keys `?` is a wildcard.
_QUERY = re.compile(r"(https?://[^\s\"'?]*)\?[^\s\"']*")


def redact(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """Return `text` without credentials in URLs and without secrets of the environment."""
    if "://" in text:
        text = without_credentials_in_url(text)
    for name in filter(_is_secret_name, environment):
        value = environment.get(name, "")
        if len(value) >= SHORTEST and value[0] != "/" and value in text:
            text = text.replace(value, HIDDEN)
    return text


@lru_cache(maxsize=4096)  # Every printed line asks about every variable.
def _is_secret_name(name: str) -> bool:
    return bool(_SECRET_NAME.search(name)) and not _HARMLESS_NAME.search(name)


def redacted(tree: Any) -> Any:
    """Return a JSON tree with every text in it redacted."""
    if isinstance(tree, dict):
        return {name: redacted(value) for name, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [redacted(value) for value in tree]
    return redact(tree) if isinstance(tree, str) else tree


def without_credentials_in_url(text: str) -> str:
    """Return `text` without user, password and query (it may hold a signature) of its URLs."""
    return _QUERY.sub(r"\1", _USER_INFO.sub("", text))


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


def log_redacted() -> None:
    """Write this package's warnings to standard error, redacted; calling again does nothing."""
    logger = logging.getLogger("aae_dist")
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(_Formatter("%(message)s"))
        logger.addHandler(handler)


def echo(line: str) -> None:
    """Print one line at once, also into a pipe, without secrets."""
    print(redact(line), flush=True)
