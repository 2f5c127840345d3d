"""Settings of a run whose steps take milliseconds, as a tree."""

WIDTHS = {"encoder_widths": [48], "decoder_widths": [48], "discriminator_widths": [48]}
SMALL = {
    "run": {"storage": "s3://runs"},
    "data": {"train": "builtin://digits/train"},
    "model": {"latent_dim": 2, **WIDTHS},
    "train": {"global_batch_size": 48, "log_every_steps": 10, "steps": 60},
    "checkpoint": {"every_steps": 20},
    "wandb": {"mode": "disabled"},
}
