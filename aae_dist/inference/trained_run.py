"""A trained run, loaded from a checkpoint: the result of `aae_dist.load_run`."""

import copy
import hashlib
import os
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from aae_dist import models
from aae_dist.checkpoints import format as checkpoints
from aae_dist.checkpoints.store import CheckpointStore
from aae_dist.config import RunConfig, config_from_stored, run_config
from aae_dist.data import Dataset, open_dataset
from aae_dist.distributed.world import World, check_cuda
from aae_dist.errors import AaeDistError, CheckpointError, ConfigError
from aae_dist.evaluation import Evaluation, Evaluator, classes_by, features
from aae_dist.evaluation.evaluator import MAX_SAMPLES
from aae_dist.evaluation.parzen import Advance, parzen_metrics
from aae_dist.priors import Prior, build_prior
from aae_dist.storage import open_storage
from aae_dist.utils.arrays import stratified
from aae_dist.utils.tensors import Values, as_tensor, keyed_generator


class TrainedRun:
    """Networks of one checkpoint, on one device, without gradients.

    Shapes: B images or codes, C H W image, Z latent_dim.

    Attributes:
        step: steps that the checkpoint had been trained for.
        config: the run's configuration, including the values inferred from the data.
        prior: p(z).
        classes: name of each label of the training data that has one, by its number.
    """

    def __init__(self, checkpoint: checkpoints.Checkpoint, uri: str, device: torch.device) -> None:
        """Build the networks and copy the checkpoint's weights; use `load_run` instead.

        Args:
            checkpoint: what `CheckpointStore.load` returns.
            uri: the run's folder.
            device: of the networks.
        """
        self.uri, self.device = uri, device
        self.step: int = checkpoint.step
        self.image_shape, classes = checkpoints.images_of(checkpoint)
        self.config: RunConfig = _without_programs(
            config_from_stored(checkpoints.config_of(checkpoint))
        )
        self.classes: dict[int, str] = {number: name for name, number in classes.items()}
        vectors = checkpoint.tensors.get("prior", {}).get("vectors")
        self.prior: Prior = build_prior(self.config.prior, self.config.model.latent_dim, vectors)
        networks = models.build_networks(self.config, self.image_shape, device, trains=False)
        checkpoints.load_weights(networks, checkpoints.weights_to_use(checkpoint.tensors))
        self._autoencoder = models.Autoencoder(
            networks, models.build_posterior(self.config.posterior, self.config.prior)
        )

    def __repr__(self) -> str:
        about = f"prior {self.config.prior.kind}, latent_dim {self.config.model.latent_dim}"
        return f"<TrainedRun {self.config.run.name}, step {self.step:,}, {about}: {self.uri}>"

    def encode(
        self,
        images: Values,
        labels: Values | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return the codes of images: the means of q(z|x), or samples of it.

        Args:
            images: (B, C, H, W), uint8 in [0, 255] or floats in [0, 1]; of a run whose decoder has
                a linear output, as for vectors, floats of any size. A tensor, a NumPy array, or a
                list of B of them; vectors of D numbers also as (B, D), samples of one channel also
                without it, as grey images (B, H, W). Signals are (B, C, L), volumes (B, C, D, H,
                W), with the channels first whatever `data.layout` is.
            labels: integers (B), for a run whose codes hold the label (`given: label`); all other
                runs do not read them.
            generator: on the CPU; codes are then drawn from q(z|x), as those that are compared with
                the prior are.

        Returns:
            Floats of shape (B, Z) in `train.precision`, on the run's device.

        Raises:
            ValueError: the images have another shape than the run was trained on, or are neither
                uint8 nor such floats; or labels are needed.
        """
        x_BCHW = self._checked_images(images)
        return self._autoencoder.encode(x_BCHW, generator, self._labels_of(x_BCHW, labels))

    def decode(self, codes: Values) -> Tensor:
        """Return the images of codes.

        Args:
            codes: floats of shape (B, Z), of any device: a tensor, an array or a list of B of them.

        Returns:
            Floats of shape (B, C, H, W), in [0, 1] for a decoder with a sigmoid output.

        Raises:
            ValueError: the codes have another shape, or are no numbers.
        """
        z_BZ = as_tensor("codes", codes)
        _check_shape("codes", z_BZ, (self.config.model.latent_dim,))
        if z_BZ.dtype.is_complex or z_BZ.dtype == torch.bool:
            raise ValueError(f"codes must be real numbers; got {z_BZ.dtype}")
        return self._autoencoder.decode(z_BZ)

    def reconstruct(self, images: Values, labels: Values | None = None) -> Tensor:
        """Return decode(encode(images)), floats (B, C, H, W); images and labels as for `encode`.

        Of counts, expected ones with the total of each sample.

        Raises:
            ValueError: as for `encode`.
        """
        x_BCHW = self._checked_images(images)
        z_BZ = self._autoencoder.encode(x_BCHW, labels_B=self._labels_of(x_BCHW, labels))
        return self._autoencoder.decode(z_BZ, x_BCHW)

    def discriminate(self, codes: Values) -> Tensor | None:
        """Return the sum of the discriminator's logits, (B), of codes (B, Z); None without one.

        High for codes that look like prior samples; a discriminator that reads labels gets none.
        """
        z_BZ = as_tensor("codes", codes)
        guided = self.config.method.kind == "label_guided"
        absent = (torch.full((len(z_BZ),), -1),) if guided else ()
        logits_BA = self._autoencoder.discriminate(z_BZ, *absent)
        return None if logits_BA is None else logits_BA.sum(1)

    def sample(
        self, num: int, generator: torch.Generator | None = None, labels: Values | None = None
    ) -> Tensor:
        """Return `num` decoded samples of the prior, floats of shape (num, C, H, W).

        Args:
            num: number of images.
            generator: on the CPU; by default one seeded by the run's seed, so that a second call
                gives the same images.
            labels: the class of each image, integers (num,), for a prior with classes: the modes of
                a mixture, the pieces of a swiss roll. A tensor, an array or a list; by default of
                all classes, as the prior mixes them.

        Raises:
            ValueError: `num` is negative; the prior has no classes, or not these; or there are not
                `num` labels.
        """
        if num < 0:
            raise ValueError(f"num should be a whole number from 0 on; got {num}")
        source = generator or keyed_generator(self.config.run.seed, "samples of a trained run")
        if labels is None:
            return self.decode(self.prior.sample(num, source))
        return self.decode(self.prior.sample_class(self._checked_labels(labels, num), source))

    def evaluate(
        self, data: str | Sequence[str] | None = None, world: World | None = None
    ) -> Evaluation:
        """Score the networks on shards, by default the run's validation shards.

        Args:
            data: pattern, folder or manifest of shards, or several; local, s3://, gs://, az://,
                https:// or builtin://.
            world: ranks that share the samples, all of which call this; by default one.

        Raises:
            ConfigError: none are given and the run was trained without.
            DataError: they are not there, damaged, or too few to score.
        """
        dataset = self.open(data)
        given = (data,) if isinstance(data, str) else data or ("data.validation",)
        evaluator = Evaluator(
            dataset,
            self.prior,
            world or World(rank=0, size=1, local_rank=0, device=self.device),
            self.config.run.seed,
            name=", ".join(given),
            threads=self.config.decoding_threads,
            training=self._training_data(),
            classes_by=classes_by(self.config),
            features=build_features(self.config, self.image_shape, self.device),
        )
        evaluation = evaluator.evaluate(self._autoencoder)
        dataset.log_unused()
        return evaluation

    def parzen(
        self,
        num_samples: int,
        data: str | Sequence[str] | None = None,
        world: World | None = None,
        advance: Advance = lambda _: None,
    ) -> dict[str, float]:
        """Return the log-likelihood of data in nats under a Parzen window on decoded samples.

        At most 10,000 samples of the data, spread over all, are scored:
        `parzen/log_likelihood`, its `parzen/standard_error`, `parzen/sigma`, `parzen/num_samples`.
        Read it next to the reconstruction error (aae_dist.evaluation.parzen).

        Args:
            num_samples: number of decoded prior samples; the paper has 10,000 and 10,000,000.
            data: shards as for `evaluate`.
            world: ranks that share the samples, all of which call this; by default one.
            advance: takes the number of samples done since its last call.

        Raises:
            ConfigError, DataError: as for `evaluate`.
            ValueError: `num_samples` is below 1.
        """
        dataset = self.open(data)
        numbers = stratified(MAX_SAMPLES, len(dataset))
        samples = dataset.load(numbers)
        good = [row for row in range(len(numbers)) if row not in samples.bad]
        x = samples.images[good].flatten(1)
        ranks = world or World(rank=0, size=1, local_rank=0, device=self.device)
        return parzen_metrics(
            x.float() / 255 if x.dtype == torch.uint8 else x.float(),
            self._autoencoder.decode,
            self.prior,
            num_samples,
            self.config.run.seed,
            ranks,
            advance,
        )

    def _training_data(self) -> Dataset | None:
        """Return the training samples, None where they are no longer there."""
        try:
            return self.open(self.config.data.train)
        except AaeDistError:
            return None

    def open(self, data: str | Sequence[str] | None = None) -> Dataset:
        """Return a data set whose images have the shape that the run was trained on.

        Args:
            data: shards as for `evaluate`; by default the run's validation shards.

        Raises:
            ConfigError: none are given and the run was trained without.
            DataError: they are not there or damaged.
        """
        dataset = open_dataset(self.shards(data), self.config.data, self.image_shape)
        dataset.label_rule = run_config.label_rule(self.config)
        return dataset

    def shards(self, data: str | Sequence[str] | None = None) -> str | Sequence[str]:
        """Return `data`, or the run's validation shards; ConfigError without either."""
        found = data or self.config.data.validation
        if not found:
            raise ConfigError(f"{self.uri} was trained without data.validation; name the shards")
        return found

    def as_modules(self) -> tuple[nn.Module, nn.Module]:
        """Return copies in float32: pixels (B, C, H, W) to codes (B, Z), and codes to pixels.

        Raises:
            ConfigError: the codes hold the label, which no network computes.
        """
        networks, posterior = self._autoencoder.networks, self._autoencoder.posterior
        if self.prior.given:
            raise ConfigError(
                f"{self.uri}: its codes hold the label, which no network computes, so its encoder "
                "cannot be exported; use aae_dist.load_run"
            )
        encoder = copy.deepcopy(models.Encoding(networks.encoder, posterior)).float().eval()
        decoder = copy.deepcopy(networks.decoder).float().eval()
        if isinstance(decoder, models.CountDecoder):
            decoder = models.ExpectedCounts(decoder)
        for parameter in [*encoder.parameters(), *decoder.parameters()]:
            # Contiguous memory: exporters warn about any other layout.
            parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)
        return encoder, decoder

    def fingerprint(self) -> str:
        """Return the SHA-256 (hex) of the encoder's and decoder's weights."""
        digest = hashlib.sha256()
        for network in (self._autoencoder.networks.encoder, self._autoencoder.networks.decoder):
            for tensor in network.state_dict().values():
                digest.update(
                    tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
                )
        return digest.hexdigest()

    def _labels_of(self, x_BCHW: Tensor, given: Values | None) -> Tensor | None:
        """Return checked labels for codes that hold the label; None for all others."""
        if not self.prior.given:
            return None
        if given is None:
            last = (self.prior.num_classes or 1) - 1
            raise ValueError(
                f"the codes of {self.uri} hold the label; give labels, from 0 to {last}"
            )
        return self._checked_labels(given, len(x_BCHW))

    def _checked_images(self, images: Values) -> Tensor:
        x_BCHW = as_tensor("images", images)
        shape = self.image_shape
        if len(shape) == 3 and shape[:2] == (1, 1) and x_BCHW.ndim == 2:
            x_BCHW = x_BCHW[:, None, None]
        elif shape[0] == 1 and x_BCHW.ndim == len(shape):
            x_BCHW = x_BCHW[:, None]
        _check_shape("images", x_BCHW, self.image_shape)
        _check_pixels(x_BCHW, self.config.model.decoder_output == "linear")
        return x_BCHW

    def _checked_labels(self, given: Values, num: int) -> Tensor:
        classes, labels = self.prior.num_classes, as_tensor("labels", given).cpu()
        if classes is None:
            raise ValueError(f"the prior ({self.config.prior.kind}) of {self.uri} has no classes")
        if tuple(labels.shape) != (num,):
            raise ValueError(f"labels must have shape ({num},); got {tuple(labels.shape)}")
        if num and (
            labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool
        ):
            raise ValueError(f"labels must be integers; got {labels.dtype}")
        labels = labels.long()
        if num and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
            raise ValueError(f"labels must be from 0 to {classes - 1}; got {labels.tolist()}")
        return labels


def _without_programs(config: RunConfig) -> RunConfig:
    """Return a stored configuration without exported features: a run must not choose programs."""
    chosen = config.evaluation.features
    if chosen is None or chosen == "wavelet" or chosen.export is None:
        return config
    return config.model_copy(update={"evaluation": type(config.evaluation)()})


def build_features(
    config: RunConfig, shape: models.SampleShape, device: torch.device
) -> features.Features | None:
    """Return the features of `evaluation.features`; None where samples are not scored.

    Raises:
        ConfigError: they cannot be had, or do not fit samples of this shape.
    """
    chosen = config.evaluation.features
    if chosen is None:
        return None
    if chosen == "wavelet":
        return features.wavelet_features(shape)
    if chosen.path is not None:
        return features.network_features(chosen.path, shape, device, **chosen.arguments)
    if chosen.export is not None:
        return features.exported_features(chosen.export, shape, device)
    assert chosen.run is not None
    run = load_run(chosen.run, device)
    where = f"evaluation.features.run: {run.uri}"
    if run.image_shape != shape:
        raise ConfigError(f"{where} has samples of shape {run.image_shape}, not {shape}")
    if run.prior.given:
        raise ConfigError(f"{where}: its codes hold labels, which samples have not; take another")
    return features.Features(run.encode, run.fingerprint())


def load_run(
    uri: str | os.PathLike[str],
    device: str | torch.device = "cpu",
    checkpoint: str | int = "newest",
) -> TrainedRun:
    """Load a run from one of its checkpoints.

    Args:
        uri: the run's folder: a local path, s3://, gs:// or az://.
        device: the device of the networks.
        checkpoint: newest: the newest one that verifies. best: that with the lowest
            `train.best_metric` of those evaluated. Or a step.

    Raises:
        CheckpointError: the folder holds no checkpoint that verifies, none of this step, or no
            best one, for a run without evaluations.
        ValueError: `checkpoint` is none of these.
        LaunchError: the storage cannot be read.
        ConfigError: the device is a GPU, and there is none.
    """
    where, uri = torch.device(device), os.fspath(uri)
    if where.type == "cuda":
        check_cuda(str(device))
    if not str(checkpoint).isdecimal() and checkpoint not in ("best", "newest"):
        raise ValueError(f"checkpoint should be best, newest or a step; got {checkpoint!r}")
    store = CheckpointStore(open_storage(uri), keep=1)
    return TrainedRun(_find_checkpoint(store, uri, checkpoint), uri, where)


def _find_checkpoint(store: CheckpointStore, uri: str, which: str | int) -> checkpoints.Checkpoint:
    newest = store.newest() if which == "newest" else None
    if newest is not None:
        return newest
    if not (steps := store.steps()):
        raise CheckpointError(
            f"{uri} holds no checkpoint that verifies; give the folder of a run, as printed when "
            "training ended"
        )
    if which != "best":
        return store.load(int(which))
    best = store.best()
    while best is not None:
        try:
            return store.load(best)
        except CheckpointError:
            # A live run may have deleted it for a better one.
            before, best = best, store.best()
            if best == before:
                raise
    raise CheckpointError(
        f"{uri} has no best checkpoint: no evaluation has measured train.best_metric. There are "
        f"{steps}; take newest or one of them"
    )


def _check_shape(name: str, values: Tensor, wanted: tuple[int, ...]) -> None:
    if values.ndim != len(wanted) + 1 or tuple(values.shape[1:]) != wanted:
        sizes = ", ".join(map(str, wanted))
        raise ValueError(f"{name} must have shape (B, {sizes}); got {tuple(values.shape)}")


def _check_pixels(images: Tensor, unbounded: bool) -> None:
    if images.dtype == torch.uint8 or not images.numel():
        return
    if not images.is_floating_point():
        raise ValueError(f"images must be uint8 or floats in [0, 1]; got {images.dtype}")
    if unbounded:
        return
    low, high = images.min().item(), images.max().item()
    # Floats up to 255 would silently be encoded into meaningless codes.
    if not (low >= 0 and high <= 1):
        raise ValueError(
            f"images must be uint8, or floats in [0, 1]; got floats from {low:g} to {high:g}"
        )
