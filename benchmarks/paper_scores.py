"""Scores of benchmarks/paper.py that a run does not measure by itself."""

import argparse

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans
from torch import Tensor, nn

from aae_dist import load_run
from aae_dist.data.dataset import Dataset
from aae_dist.evaluation.classes import clustering_scores, style_swaps
from aae_dist.inference.images import needed_class_part
from aae_dist.inference.trained_run import TrainedRun

Scores = dict[str, float]
ROWS_AT_ONCE = 1000


def rows_of(dataset: Dataset, most: int | None = None) -> tuple[Tensor, Tensor]:
    """Return images and labels of a data set, or of its first samples."""
    total = dataset.manifest.num_samples
    return dataset.read(np.arange(min(total, most or total)))


def codes_of(run: TrainedRun, images: Tensor, labels: Tensor | None = None) -> Tensor:
    """Return codes (n, Z), of which one that holds the label needs it."""
    parts = zip(
        images.split(ROWS_AT_ONCE),
        (labels if labels is not None else torch.zeros(len(images))).split(ROWS_AT_ONCE),
        strict=True,
    )
    return torch.cat([run.encode(x, labels=y if labels is not None else None) for x, y in parts])


def parzen(uri: str, options: argparse.Namespace) -> Scores:
    """Return the Parzen log-likelihood of the test images."""
    return load_run(uri).parzen(options.parzen_samples)


def clusters_of_kmeans(uri: str, options: argparse.Namespace) -> Scores:
    """Return the errors of k-means with 16 clusters on pixels and on codes, by the same protocol.

    Clusters are those of the 10,000 test images; the surest image is the nearest to the centre.
    """
    run = load_run(uri)
    images, labels = rows_of(run.open())
    points = {"pixels": images.flatten(1).float() / 255, "codes": codes_of(run, images)}
    scores: Scores = {}
    for name, rows in points.items():
        fitted = KMeans(16, n_init=10, random_state=run.config.run.seed).fit(rows.numpy())
        nearness = torch.from_numpy(-fitted.transform(rows.numpy())).exp()
        found = clustering_scores(nearness, labels)
        scores |= {f"kmeans/{name}_{key.rpartition('/')[2]}": v for key, v in found.items()}
    return scores


def classifier(images: Tensor, labels: Tensor, epochs: int) -> nn.Module:
    """Return a network of two layers of 400 that was trained to read digits."""
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Flatten(), nn.Linear(784, 400), nn.ReLU(), nn.Linear(400, 400), nn.ReLU()),
        nn.Linear(400, 10),
    )
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    total = epochs * (len(images) // 100)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).split(100)[: len(images) // 100]:
            x = images[rows].float() / 255
            # Noise keeps it from reading strokes that only a decoder draws.
            loss = F.cross_entropy(net(x + 0.2 * torch.randn_like(x)), labels[rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
    return net.requires_grad_(False)


def style_swaps_and_probe(uri: str, options: argparse.Namespace) -> Scores:
    """Return the share of style swaps read as the class asked for, and what the style tells.

    1,000 test images lend their styles to all ten classes; the classifier is trained on all real
    digits. The probe is least squares from the style to the one-hot label, on the training set.
    """
    run, epochs = load_run(uri), 1 if options.quick else 8
    part = needed_class_part(run, "styles")
    train, train_labels = rows_of(run.open(list(run.config.data.train)
        if not isinstance(run.config.data.train, str) else run.config.data.train))  # fmt: skip
    test, test_labels = rows_of(run.open())
    reader = classifier(train, train_labels, epochs)
    right = (reader(test.float() / 255).argmax(1) == test_labels).double().mean()
    swapped_KSZ = style_swaps(codes_of(run, test[:1000], test_labels[:1000]), part)
    read_KS = torch.stack([reader(run.decode(codes)).argmax(1) for codes in swapped_KSZ])
    asked = read_KS == torch.arange(part.dims)[:, None]

    style = [
        n for n in range(run.prior.latent_dim) if not part.columns.start <= n < part.columns.stop
    ]
    known = codes_of(run, train[:20_000], train_labels[:20_000])[:, style].double()
    unknown = codes_of(run, test, test_labels)[:, style].double()
    one = torch.ones(len(known), 1, dtype=torch.float64)
    solution = torch.linalg.lstsq(
        torch.cat([known, one], 1), F.one_hot(train_labels[:20_000], 10).double()
    ).solution
    told = (torch.cat([unknown, one[: len(unknown)]], 1) @ solution).argmax(1) == test_labels
    return {
        "style/swaps_right": float(asked.double().mean()),
        "style/probe_accuracy": float(told.double().mean()),
        "style/classifier_accuracy": float(right),
    }
