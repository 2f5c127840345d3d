# %% [markdown]
# # Digits from arrays
#
# An adversarial autoencoder on handwritten digits in memory: ten Gaussians on a ring as the prior,
# and codes that take its shape.

# %%
import tempfile

from IPython.display import Image

import aae_dist

x, y = aae_dist.data.read_arrays("builtin://digits/train")
held_out = aae_dist.data.read_arrays("builtin://digits/validation")
x.shape, x.dtype

# %% [markdown]
# The configuration is a dictionary like the YAML files. Without `run.storage` runs are kept in
# `~/aae_dist/runs`, and the same call returns the finished run at once.

# %%
config = {
    "run": {"name": "digits", "storage": tempfile.mkdtemp()},
    "model": {
        "latent_dim": 2,
        "encoder_widths": [128],
        "decoder_widths": [128],
        "discriminator_widths": [128],
    },
    "prior": {"kind": "mixture", "num_modes": 10},
    "train": {"steps": 400, "log_every_steps": 100},
    "wandb": {"mode": "disabled"},
}
result = aae_dist.train(config, (x, y), validation=held_out)

# %%
result

# %% [markdown]
# The picture of the codes again, and samples of the prior, decoded:

# %%
Image(result.pictures["latent_codes"], width=500)

# %%
result.run.encode(x[:3]), result.run.sample(4).shape

# %%
[(r["step"], round(r["loss/reconstruction"], 2)) for r in result.history]
