"""`aae_dist.push` and `aae_dist.pull`: trained runs on the Hugging Face hub."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from aae_dist.api.card import Card
from aae_dist.api.sharing import FILES, README, check_replaceable, share
from aae_dist.checkpoints.store import CheckpointStore
from aae_dist.config.load import absolute_storage
from aae_dist.errors import AaeDistError, CheckpointError, ConfigError, StorageError
from aae_dist.inference.trained_run import load_run
from aae_dist.storage import base, open_storage, read_or_none
from aae_dist.training.folder import RUN
from aae_dist.utils.text import redact
from aae_dist.version import __version__

ENDPOINT, TOKEN = "HF_ENDPOINT", "HF_TOKEN"
HUB = "https://huggingface.co"
CHECKPOINTS = "checkpoints/"
_OWNER_NAME = "a repository of the hub is written OWNER/NAME"


def push(
    run: str | os.PathLike[str],
    repo: str,
    *,
    checkpoint: str | int = "newest",
    public: bool = False,
    license: str | None = None,
    data_name: str | None = None,
    data_license: str | None = None,
) -> str:
    """Upload a trained run with a model card to the Hugging Face hub; return the page's address.

    Uploaded are the weights, the vectors of an empirical prior, the names of the classes, the
    configuration without addresses of data and runs, the scores, a picture of decoded prior samples
    and the card: no data, no optimizer state, no pickle, no secret. What an earlier push left in
    the repository is replaced. The token is read from the variable HF_TOKEN alone, the server from
    HF_ENDPOINT.

    Args:
        run: a run's folder, or a folder that `aae-dist export` wrote, whose card is kept: a local
            path, s3://, gs:// or az://.
        repo: OWNER/NAME; it is created if it does not exist.
        checkpoint: newest, best or a step, as for `aae_dist.load_run`.
        public: whether a repository that is created can be seen by everybody.
        license: identifier of the licence of the weights, such as apache-2.0.
        data_name: what the card calls the data, in words or as the hub's data set OWNER/NAME.
        data_license: identifier of the licence of the data.

    Raises:
        ConfigError: HF_TOKEN is not set, `repo` is no name, an identifier of a licence is wrong,
            huggingface-hub is not installed, or an argument of a class of one's own names a place
            of this machine.
        CheckpointError: the run has no such checkpoint.
        StorageError: the hub refused or cannot be reached.
    """
    api = _client(repo, writes=True)
    card = Card(license, data_name, data_license)
    uri = absolute_storage(os.fspath(run))
    loaded = load_run(uri, checkpoint=checkpoint)
    with tempfile.TemporaryDirectory(prefix="aae_dist-push-") as folder:
        target, source = open_storage(folder), open_storage(uri)
        own_card = read_or_none(source, README) if source.size(RUN) is None else None
        if own_card is not None:
            target.write(README, redact(own_card.decode(errors="replace")).encode())
        share(loaded, target, card, repo)
        with _in_one_line(repo):
            api.create_repo(repo, private=not public, exist_ok=True)
            title = f"{loaded.config.run.name}, step {loaded.step:,}"
            _upload(api, repo, folder, title)
    return f"{api.endpoint}/{repo}"


def _upload(api: Any, repo: str, folder: str, title: str) -> None:
    api.upload_folder(
        repo_id=repo,
        folder_path=folder,
        delete_patterns=f"{CHECKPOINTS}*",
        commit_message=title,
    )


def pull(repo: str, folder: str | os.PathLike[str], *, revision: str | None = None) -> str:
    """Download a run that `push` has uploaded; return its folder, for `aae_dist.load_run`.

    Only files that `push` writes are downloaded: safetensors, JSON, YAML, the card and a picture.
    Nothing of them is executed, but a configuration may name classes of installed packages, which
    `load_run` imports. Pulling again into the same folder brings it to the newer revision. The
    token, for private repositories, is read from the variable HF_TOKEN alone.

    Args:
        repo: OWNER/NAME.
        folder: a local path, absent, or of an earlier pull.
        revision: a branch, a tag or a commit; by default main.

    Raises:
        ConfigError: `repo` is no name, `folder` holds a run that was trained there or files of
            something else, or huggingface-hub is not installed.
        CheckpointError: the repository holds no checkpoint of a run that verifies.
        StorageError: the hub refused or cannot be reached, or has no such repository.
    """
    api = _client(repo, writes=False)
    path = os.path.abspath(os.path.expanduser(os.fspath(folder)))
    target = open_storage(path)
    check_replaceable(target, more=(README,))
    with _in_one_line(repo):
        info = api.model_info(repo, revision=revision)
        names = [file.rfilename for file in info.siblings or () if FILES.match(file.rfilename)]
        if not any(name.startswith(CHECKPOINTS) for name in names):
            raise CheckpointError(f"{repo} holds no run of aae_dist")
        for name in names:
            api.hf_hub_download(repo, name, revision=info.sha, local_dir=path)
    for entry in target.list("checkpoints"):
        if entry.key not in names:  # of another revision
            target.delete(entry.key)
    if CheckpointStore(target, keep=1).newest() is None:
        raise CheckpointError(f"{repo} holds no checkpoint that verifies; pull it again")
    return path


def _client(repo: str, writes: bool) -> Any:
    """Return a client of the hub that knows no other token than that of the environment."""
    try:
        from huggingface_hub import HfApi
    except ImportError:
        raise ConfigError("the hub needs huggingface-hub: pip install 'aae_dist[hub]'") from None
    if repo.count("/") != 1 or not all(repo.split("/")):
        raise ConfigError(f"{_OWNER_NAME}; got {repo!r:.100}")
    endpoint = os.environ.get(ENDPOINT, "").strip().rstrip("/") or HUB
    parts = urlsplit(endpoint)
    if parts.scheme != "https" and not (
        parts.scheme == "http" and base.is_loopback(parts.hostname or "")
    ):
        raise ConfigError(
            f"{ENDPOINT}: should be an https:// address; got {redact(endpoint)!r:.100}"
        )
    token = os.environ.get(TOKEN, "").strip()
    if writes and not token:
        raise ConfigError(f"set {TOKEN} to a token of the hub that may write {repo}")
    # False, not None: the client would look for a token in files of the home.
    return HfApi(
        endpoint=endpoint,
        token=token or False,
        library_name="aae_dist",
        library_version=__version__,
    )


@contextmanager
def _in_one_line(repo: str) -> Iterator[None]:
    """Raise what the client raises as errors of ours."""
    from huggingface_hub import errors

    try:
        yield
    except errors.RepositoryNotFoundError as error:
        raise StorageError(
            f"{repo}: the hub has no such repository, or {TOKEN} may not see it", "forbidden"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise StorageError(f"{repo}: the hub has no such revision") from error
    except errors.HFValidationError as error:
        raise ConfigError(f"{_OWNER_NAME}; {error}") from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        advice = f"; check that {TOKEN} may write there" if status in (401, 403) else ""
        reason = " ".join((error.server_message or error.response.reason_phrase).split())
        raise StorageError(f"{repo}: the hub answered {status} ({reason:.200}){advice}") from error
    except AaeDistError:
        raise
    except Exception as error:  # of the HTTP client, whose classes differ between versions
        cause = error.__cause__ if isinstance(error, RuntimeError) else None
        reason = " ".join(f"{error} {cause or ''}".split())
        raise StorageError(
            f"{repo}: the hub cannot be reached, or did not answer as it should ({reason:.200})",
            "unreachable",
        ) from error
