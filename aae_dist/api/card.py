"""The model card of a shared run: README.md with the header that the Hugging Face hub reads."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from aae_dist.config import RunConfig, yaml
from aae_dist.errors import ConfigError
from aae_dist.inference.trained_run import TrainedRun
from aae_dist.utils.text import four_digits, number, redact
from aae_dist.version import __version__

MAX_CLASSES = 20
"""Class names that a card lists."""
DIGITS = "builtin://digits/"
SCORES = {
    "reconstruction/mse": ("mse", "squared error per value"),
    "reconstruction/variance": ("", "the same of the mean, for comparison"),
    "reconstruction/pca": ("", "the same of a PCA of the same size"),
    "prior_match/c2st": ("c2st", "accuracy of a classifier that tells codes from prior samples; "
                         "0.5 is a perfect match"),
    "prior_match/sliced_wasserstein": ("sliced_wasserstein", "1.0 is a perfect match"),
    "prior_match/mmd": ("mmd", "1.0 is a perfect match"),
    "prior_match/num_samples": ("", "codes that were compared with the prior"),
    "clustering/error": ("clustering_error", "of clusters named by one sample each"),
    "classification/error": ("classification_error", "labels that the encoder gets wrong"),
}  # fmt: skip
"""Scores that a card shows: their type in the header, empty for none, and their meaning."""


@dataclass(frozen=True)
class Card:
    """What a model card says that its run does not know.

    Attributes:
        license: identifier of the licence of the weights, as the hub spells it: apache-2.0, mit.
        data_name: what the data are called, in words or as the hub's data set `owner/name`.
        data_license: identifier of the licence of the data.
    """

    license: str | None = None
    data_name: str | None = None
    data_license: str | None = None

    def __post_init__(self) -> None:
        for name in ("license", "data_license"):
            value = getattr(self, name)
            if value is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]{0,63}", value):
                raise ConfigError(
                    f"{name.replace('_', ' ')}: should be an identifier such as apache-2.0 or "
                    f"cc-by-4.0; got {value!r:.80}"
                )


def write_card(
    run: TrainedRun,
    config: RunConfig,
    summary: Mapping[str, Any],
    card: Card,
    data: Mapping[str, Any],
    has_picture: bool,
    repo: str | None = None,
) -> str:
    """Return the text of a model card, without secrets.

    Args:
        run: the run, of the checkpoint that is shared.
        config: its configuration without private places.
        summary: the scores and the verdict of that checkpoint, as summary.json has them.
        card: licences and the name of the data.
        data: `image_shape`, `classes` and `num_samples` of the training data.
        has_picture: whether samples.png lies next to the card.
        repo: the hub's repository, None if it is not known yet.
    """
    card = _with_known_data(card, config)
    parts = [
        f"---\n{yaml.dump(_header(config, summary, card))}---\n",
        "\n".join(_introduction(run, config, has_picture)),
        _use(run, config, repo),
        "\n".join(_data(card, data)),
        "\n".join(_networks(run, config)),
        "\n".join(_scores(summary)),
        "\n".join(_files(card)),
    ]
    return redact("\n".join(parts))


def _with_known_data(card: Card, config: RunConfig) -> Card:
    if card.data_name is None and str(config.data.train).startswith(DIGITS):
        name = "10,000 handwritten digits of MNIST, which ship with aae_dist"
        return Card(card.license, name, card.data_license or "cc-by-sa-3.0")
    return card


def _header(config: RunConfig, summary: Mapping[str, Any], card: Card) -> dict[str, Any]:
    header: dict[str, Any] = {
        "license": card.license or "unknown",
        "library_name": "aae_dist",
        "pipeline_tag": "feature-extraction",
        "tags": ["autoencoder", f"{config.method.kind}-autoencoder", f"{config.prior.kind}-prior"],
    }
    if card.data_name and re.fullmatch(r"[\w.-]+/[\w.-]+", card.data_name):
        header["datasets"] = [card.data_name]
    metrics = [
        {"type": kind, "name": name, "value": round(value, 6)}
        for name, (kind, _) in SCORES.items()
        if kind and (value := summary["metrics"].get(name)) is not None
    ]
    if metrics:
        result = {
            "task": {"type": "feature-extraction", "name": "codes that match a prior"},
            "dataset": {"type": "validation", "name": card.data_name or "not named"},
            "metrics": metrics,
        }
        header["model-index"] = [{"name": config.run.name, "results": [result]}]
    return header


def _introduction(run: TrainedRun, config: RunConfig, has_picture: bool) -> Iterator[str]:
    yield f"# {config.run.name}\n"
    yield (
        f"An autoencoder with {config.model.latent_dim} latent dimensions whose codes follow a "
        f"prior of kind `{config.prior.kind}`: method `{config.method.kind}`, {run.step:,} steps, "
        f"trained with aae_dist {__version__}.\n"
    )
    if has_picture:
        yield "![decoded samples of the prior](samples.png)\n\n*Decoded samples of the prior.*\n"


def _use(run: TrainedRun, config: RunConfig, repo: str | None) -> str:
    shape = ", ".join(map(str, run.image_shape))
    own = [name for name in ("encoder", "decoder", "discriminator") if getattr(config.model, name)]
    own += ["prior"] if config.prior.kind == "custom" else []
    # Codes that hold the label are of samples with labels alone.
    codes = f"codes = run.encode(samples)  # (16, {config.model.latent_dim})\n"
    encode = "" if run.prior.given else codes
    note = f"\nIt needs classes that are not part of aae_dist: {', '.join(own)}.\n" if own else ""
    return f"""\
## Use

```python
import aae_dist

folder = aae_dist.pull({repo or "OWNER/NAME"!r}, "model")  # pip install 'aae_dist[hub]'
run = aae_dist.load_run(folder)
samples = run.sample(16)  # (16, {shape})
{encode}```
{note}"""


def _data(card: Card, data: Mapping[str, Any]) -> Iterator[str]:
    yield "## Data\n"
    yield f"- Name: {card.data_name or 'not stated'}"
    if data["num_samples"]:
        yield f"- Training samples: {data['num_samples']:,}"
    yield f"- Shape of a sample: {' x '.join(map(str, data['image_shape']))}"
    names = list(data["classes"])
    if names:
        more = f" and {len(names) - MAX_CLASSES} more" if len(names) > MAX_CLASSES else ""
        yield f"- Classes: {', '.join(names[:MAX_CLASSES])}{more}"
    yield f"- Licence: {card.data_license or 'not stated'}\n"


def _networks(run: TrainedRun, config: RunConfig) -> Iterator[str]:
    yield "## Prior and networks\n"
    settings = config.prior.model_dump(mode="json", exclude={"kind", "uri", "vectors"})
    yield f"- Prior: `{config.prior.kind}` {_compact(settings)}"
    yield f"- Posterior: `{config.posterior.kind}`"
    yield f"- Networks: `{config.model.kind}`, decoder output `{config.model.decoder_output}`"
    yield f"- Loss of the reconstruction: `{config.method.reconstruction_loss}`"
    yield f"- Weights: SHA-256 `{run.fingerprint()}`"
    yield "- All settings: `config.yaml`\n"


def _compact(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in settings.items() if value is not None)


def _scores(summary: Mapping[str, Any]) -> Iterator[str]:
    yield "## Scores\n"
    metrics, verdict = summary["metrics"], summary["verdict"]
    if verdict is None:
        yield f"Step {summary['step']:,} was not evaluated on validation data.\n"
        return
    yield f"On validation data, at step {summary['step']:,}:\n"
    yield "| score | value | meaning |\n|---|---|---|"
    for name, (_, meaning) in SCORES.items():
        if (value := metrics.get(name)) is not None:
            yield f"| {name} | {_interval(name, value, metrics)} | {meaning} |"
    yield ""
    yield from (f"{line}\n" for line in verdict["text"])


def _interval(name: str, value: float, metrics: Mapping[str, Any]) -> str:
    low, high = metrics.get(f"{name}_low"), metrics.get(f"{name}_high")
    if low is None or high is None:
        return number(value)
    return f"{number(value)} ({four_digits(low)} to {four_digits(high)})"


def _files(card: Card) -> Iterator[str]:
    yield "## What is here\n"
    yield (
        "Weights as safetensors, the configuration, the scores and this card. There are no data, "
        "no optimizer state and no pickles. Addresses of the data and of the run are left out. To "
        "train from these weights, give `run.init_from` this folder.\n"
    )
    yield f"Licence of the weights: {card.license or 'not stated'}."
    yield ""
