"""A trained run as a folder for others: weights, configuration, scores and a model card.

The folder is built from lists of what may be in it. It holds the weights of one checkpoint, the
vectors of an empirical prior, the shape and the class names of the data, the configuration without
places of this machine, and the scores. No optimizer state, no data, no pickle.
"""

import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from aae_dist.api.card import Card, write_card
from aae_dist.checkpoints.format import images_of, weights_to_use
from aae_dist.checkpoints.store import CheckpointStore
from aae_dist.config import RunConfig, config_from_tree, dump_yaml
from aae_dist.errors import ConfigError
from aae_dist.inference import images, trained_run
from aae_dist.storage import Storage, documents, open_storage
from aae_dist.tracking.metric_log import read_records
from aae_dist.training.folder import CONFIG, RUN, SUMMARY, RunState, Summary, give_verdict
from aae_dist.utils.text import redacted

README, SAMPLES = "README.md", "samples.png"
FILES = re.compile(
    r"(README\.md|config\.yaml|summary\.json|samples\.png"
    r"|checkpoints/step-\d{9,}/((MANIFEST|config|data)\.json|(model|prior)\.safetensors))\Z"
)
"""Files of a shared folder: what is pushed and pulled."""
KEPT = ("data", "model", "posterior", "prior", "method", "phases", "train")
"""Sections that are shared; of `run` the name and the seed are."""
PUBLIC = "builtin://"
NOT_SHARED = "not-shared"
"""Stands in the configuration for an address that stays private."""
NUM_SAMPLES = 64
_PLACE = re.compile(r"^(~|/|\.{1,2}/|[A-Za-z]:[\\/])|://|\\")


def share(run: trained_run.TrainedRun, out: Storage, card: Card, repo: str | None = None) -> None:
    """Write the folder of a run for others; `aae_dist.load_run` loads it.

    Args:
        run: the run, of the checkpoint to share.
        out: an absent folder, or one that this function wrote; its model card is kept.
        card: what the model card says that the run does not know.
        repo: the hub's repository that the card names.

    Raises:
        ConfigError: `out` is the folder of a run that trains or holds files of something else, or
            the configuration of a class of one's own names a place of this machine.
    """
    check_replaceable(out)
    saved = CheckpointStore(open_storage(run.uri), keep=1).load(run.step)
    shape, classes = images_of(saved)
    config = shared_config(run.config)
    summary = shared_summary(run, config)
    num_samples = saved.metadata["data"].get("num_samples")
    data = {"image_shape": shape, "classes": classes, "num_samples": num_samples}
    tensors = {"model": weights_to_use(saved.tensors)}
    if "prior" in saved.tensors:
        tensors["prior"] = saved.tensors["prior"]
    out.clear("checkpoints")  # an earlier export may be of a later step
    metadata = {"config": config.model_dump(mode="json"), "data": redacted(data)}
    store = CheckpointStore(out, keep=1)
    store.save(run.step, tensors, metadata)
    store.wait()
    out.write(CONFIG, dump_yaml(config, without_secrets=True).encode())
    out.write(SUMMARY, json.dumps(redacted(summary), indent=2, allow_nan=False).encode())
    has_picture = _write_samples(run, out)
    if out.size(README) is None:
        text = write_card(run, config, summary, card, data, has_picture, repo)
        out.write(README, text.encode())


def check_replaceable(out: Storage, more: tuple[str, ...] = ()) -> None:
    """Raise ConfigError unless what a folder holds may be replaced by a shared run.

    Args:
        out: the folder, absent or not.
        more: files that are replaced, in addition to configuration, scores and samples.
    """
    if out.size(RUN) is not None:
        raise ConfigError(
            f"{out.uri} is the folder of a run, not of its export; give another folder"
        )
    found = [entry.key for entry in out.list("checkpoints")]
    others = [key for key in found if not FILES.match(key)]
    if not found:  # with checkpoints of ours, these files are ours too
        others = [name for name in (CONFIG, SUMMARY, SAMPLES, *more) if out.size(name) is not None]
    if others:
        raise ConfigError(
            f"{out.uri} holds {others[0]}, which is of no shared run and would be replaced; give "
            "another folder"
        )


def shared_config(config: RunConfig) -> RunConfig:
    """Return a configuration without places of this machine and names of its accounts.

    Kept are networks, prior, posterior, method and training, the seed, the run's name, and how
    samples are decoded. Addresses of data are replaced, but for those that ship with aae_dist.

    Raises:
        ConfigError: an argument of a class of one's own names a place.
    """
    tree = config.model_dump(mode="json")
    kept = {name: tree[name] for name in KEPT}
    kept["run"] = {name: tree["run"][name] for name in ("name", "seed")}
    kept["launch"] = {"kind": "local"}
    kept["train"].pop("device")
    for network in ("encoder", "decoder", "discriminator"):
        if kept["model"][network] is not None:
            kept["model"][network].pop("weights")  # read at the start of training only
    data, prior = kept["data"], kept["prior"]
    data.pop("cache")
    data["train"] = _public(data["train"]) or NOT_SHARED
    data["validation"] = _public(data["validation"])
    if data["labelled"] is not None:
        data["labelled"] = _public(data["labelled"]) or NOT_SHARED
    for key in {"uri", "vectors"} & set(prior):
        prior[key] = _public(prior[key]) or NOT_SHARED
    kept = redacted(kept)
    for key, text in _texts(kept):
        if _is_place(text, key):
            raise ConfigError(
                f"{key}: {text!r:.100} is a place of this machine, which is not shared; build the "
                "class without it (its weights come from the checkpoint), or name no place"
            )
    return config_from_tree(kept)


def _public(address: Any) -> Any:
    """Return an address, or a list of them, if it ships with the package, else None."""
    each = [address] if isinstance(address, str) else address or ()
    return address if each and all(one.startswith(PUBLIC) for one in each) else None


def _texts(tree: Any, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(tree, str):
        yield key, tree
    elif isinstance(tree, dict):
        for name, value in tree.items():
            yield f"{key}.{name}".strip("."), str(name)
            yield from _texts(value, f"{key}.{name}".strip("."))
    elif isinstance(tree, list):
        for value in tree:
            yield from _texts(value, key)


def _is_place(text: str, key: str) -> bool:
    if text.startswith(PUBLIC):
        return False
    is_file = ".arguments" in key and os.sep in text and os.path.exists(text)
    return is_file or bool(_PLACE.search(text))


def shared_summary(run: trained_run.TrainedRun, config: RunConfig) -> dict[str, Any]:
    """Return the summary of the shared checkpoint: its scores and a verdict, made from them.

    Scores of another step are left out. The stored verdict is not copied: its words may name files.
    """
    folder = open_storage(run.uri)
    found = documents.read_document(folder, SUMMARY, Summary)
    metrics: Mapping[str, float | None] = {}
    alarms: Mapping[str, int] = {}
    if found is not None and found.step == run.step:
        metrics, alarms = found.metrics, found.alarms
    else:
        for record in read_records(folder):
            if record["step"] == run.step:
                metrics = {**metrics, **record}
    scored = "reconstruction/mse" in metrics
    return {
        "state": RunState.FINISHED if found is None else found.state,
        "step": run.step,
        "metrics": dict(metrics),
        "alarms": dict(alarms),
        "verdict": give_verdict(metrics, config, alarms) if scored else None,
        "config": config.model_dump(mode="json"),
    }


def _write_samples(run: trained_run.TrainedRun, out: Storage) -> bool:
    """Write a picture of decoded prior samples, which show no data; False for no images."""
    shape = list(run.image_shape)
    if len(shape) != 3 or 1 in shape[1:]:
        return False
    with tempfile.TemporaryDirectory(prefix="aae_dist-samples-") as folder:
        picture = Path(folder, SAMPLES)
        images.write_images(picture, run.sample(NUM_SAMPLES))
        out.upload(SAMPLES, picture)
    return True
