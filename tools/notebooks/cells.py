# %% [markdown]
# # Cells
#
# Counts of genes in simulated cells of six types: a negative binomial likelihood given each cell's
# total, and codes that follow a Gaussian. How well do they keep the types apart, compared with a PCA
# of log-normalized counts of the same size? Most of a cell's counts is noise, and the KL term of the
# variational method keeps it out of the codes (docs/counts.md).

# %%
import tempfile

import numpy as np
from IPython.display import Image

import aae_dist

draw = np.random.default_rng(0)
num_cells, num_genes, num_types = 1500, 100, 6
profiles = draw.gamma(0.8, 1.0, num_genes) * np.exp(0.6 * draw.normal(size=(num_types, num_genes)))
profiles /= profiles.sum(1, keepdims=True)
types = np.arange(num_cells) % num_types
totals = 400 * np.exp(0.4 * draw.normal(size=(num_cells, 1)))  # cells differ in depth
rates = draw.gamma(2.0, totals * profiles[types] / 2.0)  # dispersion 2
counts = draw.poisson(rates).astype("float32")
train, held_out = slice(0, 1200), slice(1200, None)

# %%
config = {
    "run": {"name": "cells", "storage": tempfile.mkdtemp()},
    "model": {
        "latent_dim": 8,
        "decoder_output": "linear",
        "encoder_widths": [64],
        "decoder_widths": [64],
        "discriminator_widths": [64],
    },
    "posterior": {"kind": "gaussian"},
    "method": {"kind": "variational", "reconstruction_loss": "negative_binomial"},
    "train": {"steps": 1000, "log_every_steps": 250},
    "wandb": {"mode": "disabled"},
}
result = aae_dist.train(
    config, (counts[train], types[train]), validation=(counts[held_out], types[held_out])
)

# %% [markdown]
# Codes of held-out cells over the density of the prior, along the first two principal axes of the codes:

# %%
Image(result.pictures["latent_codes"], width=500)

# %% [markdown]
# The share of a cell's 15 nearest neighbours that have its type:


# %%
def agreement(codes, labels, k=15):
    distances = np.square(codes[:, None] - codes[None]).sum(2)
    np.fill_diagonal(distances, np.inf)
    nearest = distances.argsort(1)[:, :k]
    return (labels[nearest] == labels[:, None]).mean()


def log_pca(counts, size):
    normalized = np.log1p(counts / counts.sum(1, keepdims=True) * np.median(counts.sum(1)))
    centred = normalized - normalized.mean(0)
    return centred @ np.linalg.svd(centred, full_matrices=False)[2][:size].T


codes = result.run.encode(counts[held_out]).numpy()
{
    "codes": round(agreement(codes, types[held_out]), 3),
    "PCA of the same size": round(agreement(log_pca(counts[held_out], 8), types[held_out]), 3),
    "C2ST of codes and prior (0.5 is perfect)": round(result.metrics["prior_match/c2st"], 3),
}

# %% [markdown]
# New cells are decoded samples of the prior: expected counts of a cell of the median total.

# %%
result.run.sample(3).shape, result.run.sample(3).flatten(1).sum(1)
