# %% [markdown]
# # A prior and a network of your own
#
# Both are classes that a run finds by import path, so that workers of a cluster find them too. Here
# a file next to the notebook holds them.

# %%
import sys
import tempfile
from pathlib import Path

from IPython.display import Image

import aae_dist

Path("ring_parts.py").write_text('''
"""A ring as the prior, and an encoder with layer norm."""

import math

import torch
from torch import nn

from aae_dist.priors import Prior


class Ring(Prior):
    """Points near a circle of radius 1.5."""

    def sample(self, num_samples, generator):
        angle = 2 * math.pi * torch.rand(num_samples, 1, generator=generator)
        noise = 0.4 * torch.randn(num_samples, 2, generator=generator)
        return 1.5 * torch.cat([angle.cos(), angle.sin()], 1) + noise


class NormEncoder(nn.Module):
    """Images to codes."""

    def __init__(self, sample_shape, num_outputs, width=96):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.Linear(math.prod(sample_shape), width),
            nn.LayerNorm(width),
            nn.SiLU(),
            nn.Linear(width, num_outputs),
        )

    def forward(self, x):
        return self.layers(x)
''')
sys.path.insert(0, ".")

# %%
x, y = aae_dist.data.read_arrays("builtin://digits/train")
config = {
    "run": {"name": "ring", "storage": tempfile.mkdtemp()},
    "model": {
        "latent_dim": 2,
        "encoder": {"path": "ring_parts:NormEncoder", "arguments": {"width": 128}},
        "decoder_widths": [128],
        "discriminator_widths": [128],
    },
    "prior": {"kind": "custom", "path": "ring_parts:Ring"},
    "method": {"weight": 0.08, "distance_weight": 0.5},  # about twice the default
    "train": {"steps": 1000, "log_every_steps": 200, "evaluate_every_steps": 500},
    "wandb": {"mode": "disabled"},
}


class Watch(aae_dist.Callback):
    """Prints evaluations, and stops when the codes match the prior well."""

    def on_evaluate(self, metrics):
        print(f"step {metrics['step']}: C2ST {metrics['prior_match/c2st']:.3f}")
        return metrics["prior_match/c2st"] < 0.52


result = aae_dist.train(config, (x, y), [Watch()], validation=0.2)

# %% [markdown]
# The codes lie over the density of the prior. A classifier tells them from prior samples little better
# than chance: C2ST, 0.5 is perfect. With the default weights it is 0.65 here, and the reconstruction error
# 2 % lower. A thinner ring needs more steps.

# %%
Image(result.pictures["latent_codes"], width=500)

# %% [markdown]
# The scores are functions too, for codes from anywhere:

# %%
from ring_parts import Ring

codes = result.run.encode(x[:1000])
aae_dist.metrics.c2st(codes, Ring(2))
