"""Names of metrics in records, files and W&B."""

STEP = "step"
EPOCH = "epoch"
SAMPLES_PER_SECOND = "throughput/samples_per_second"

LOSS_PREFIX = "loss/"

LABELS = {
    "reconstruction/mse": "mse per pixel",
    "prior_match/c2st": "C2ST",
    "prior_match/sliced_wasserstein": "sliced Wasserstein",
    "prior_match/mmd": "MMD",
}
"""What people call the metrics that they look at first."""
