"""Training methods, each with a step that reads like its paper."""

from aae_dist.methods.build import build_method, build_optimizer
from aae_dist.methods.method import Losses, Method, MicroBatch, StepInputs

__all__ = ["Losses", "Method", "MicroBatch", "StepInputs", "build_method", "build_optimizer"]
