"""Log-likelihood of data under a Parzen window on decoded prior samples.

Goodfellow et al., arXiv 1406.2661, and Makhzani et al., arXiv 1511.05644, table 1: p(x) is the mean
of Gaussians of standard deviation sigma around N samples of the decoder. It is high-variance, rises
with N and can be gained by blur, so read it only next to the reconstruction error. Here N may be
millions: samples are decoded in blocks and forgotten.

Shapes: n scored points, s samples of a block, D values per point, S bandwidths.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from aae_dist.distributed.world import World, rows_of_all_ranks, run_on_all_ranks
from aae_dist.priors import Prior
from aae_dist.utils.tensors import keyed_generator

BLOCK = 2048
"""Samples that are decoded and compared at once."""
POINTS_AT_ONCE = 2048
"""Points whose distances to a block are in memory at once: 16 MiB."""
NUM_DIRECTIONS = 95
"""Directions in which distances are bounded from below, and one number for the rest: an eighth of
the products of 784. Of MNIST and 6 dimensions 0.04 % of the pairs then need their distance; with 64
directions it were 0.09 %, and without that number 0.18 %."""
MAX_GATHERED = 1 / 64
"""Part of all pairs up to which distances are taken one by one; beyond, one product is cheaper."""
PAIRS_AT_ONCE = 8192
"""Pairs whose differences are in memory at once: 25 MiB of 784 values."""
NUM_PILOT = 10_000
"""Samples that the bandwidth is first looked for with: the number of the paper's smaller table."""
STEPS_PER_OCTAVE = 8
"""Bandwidths tried per factor of two. Half a step is 4 %, which costs (0.04)^2 D_eff nats: below
1.5 for 784 values."""
DROPPED = 1e-6
"""Part of a sum that may be left out, as the distance is too large: 1e-6 nats."""

Decode = Callable[[Tensor], Tensor]
"""Codes (s, Z) -> images (s, ...)."""
Advance = Callable[[int], None]


@dataclass(frozen=True)
class Rows:
    """Points or samples, about a common centre."""

    values: Tensor
    """Float32 (n, D)."""
    projected: Tensor
    """Float32 (n, K + 1): along orthonormal directions, and the length of what these leave out."""

    @classmethod
    def centred(cls, rows_nD: Tensor, centre_D: Tensor, directions_DK: Tensor) -> "Rows":
        """Return rows less the centre, along the directions too."""
        # Centred, as float32 keeps squared distances as exactly as the squared lengths allow.
        values = (rows_nD.double() - centre_D).float()
        projected = values @ directions_DK
        squares = values.square().sum(1, keepdim=True) - projected.square().sum(1, keepdim=True)
        return cls(values, torch.cat([projected, squares.clamp(min=0).sqrt()], 1))

    def __getitem__(self, rows: slice) -> "Rows":
        return Rows(self.values[rows], self.projected[rows])


def squared_distances(x_nD: Tensor, y_sD: Tensor) -> Tensor:
    """Return float32 (n, s), by one product."""
    lengths_s = y_sD.double().square().sum(1).float()
    partial = torch.addmm(lengths_s, x_nD, y_sD.T, alpha=-2)
    return partial.add_(x_nD.double().square().sum(1, keepdim=True).float())


def lower_bounds(points: Rows, samples: Rows) -> Tensor:
    """Return the squared distances along the directions and of the rests' lengths, (n, s).

    No distance is smaller: rests are at least as far apart as their lengths differ.
    """
    return squared_distances(points.projected, samples.projected)


def distances_of(x_nD: Tensor, y_sD: Tensor, points: Tensor, samples: Tensor) -> Tensor:
    """Return the squared distances of pairs, float32 (p)."""
    chunks = zip(points.split(PAIRS_AT_ONCE), samples.split(PAIRS_AT_ONCE), strict=True)
    return torch.cat([(x_nD[n] - y_sD[s]).square_().sum(1) for n, s in chunks])


def main_directions(rows_nD: Tensor, num: int) -> Tensor:
    """Return orthonormal directions along which the rows mostly vary, float32 (D, num).

    By a randomized range finder with one power iteration (Halko et al., arXiv 0909.4061).
    """
    draw = torch.Generator().manual_seed(0)
    first = torch.randn(rows_nD.shape[1], min(num, rows_nD.shape[1]), generator=draw)
    directions_DK: Tensor = torch.linalg.qr(rows_nD.T @ (rows_nD @ first))[0]
    return directions_DK


@dataclass
class KernelSums:
    """Sums of kernels per point and bandwidth, in units of each point's largest kernel.

    For all bandwidths the largest kernel is that of the nearest sample, so one minimum serves all:
    sum_i exp(-(d_i - d_min) / (2 sigma^2)), with squared distances d.
    """

    sigmas: Tensor
    """Float64 (S)."""
    nearest: Tensor
    """Float64 (n): smallest squared distance so far; inf before any."""
    sums: Tensor
    """Float64 (n, S)."""

    @classmethod
    def empty(cls, sigmas: Tensor, num_points: int) -> "KernelSums":
        """Return the sums over no sample."""
        nearest = torch.full((num_points,), torch.inf, dtype=torch.float64)
        return cls(sigmas, nearest, torch.zeros(num_points, len(sigmas), dtype=torch.float64))

    def add(self, rows: slice, points: "Rows", samples: "Rows", reach: float) -> None:
        """Add the kernels of a block of samples to the sums of some points.

        Only samples at most `reach` farther than the nearest are added: with 784 values nearly all
        are too far to count.
        """
        bounds_ns = lower_bounds(points, samples)
        limits_n = (self.nearest[rows] + reach).float()
        most = bounds_ns.numel() * MAX_GATHERED
        if (bounds_ns < limits_n[:, None]).count_nonzero() > most:
            # Too many, as in the first block: the nearest by the bound gives a better limit.
            closest = samples.values[bounds_ns.argmin(1)]
            self.rescale(rows, (points.values - closest).square().sum(1).double())
            limits_n = (self.nearest[rows] + reach).float()

        # Of the pairs that may be near, take the distances themselves.
        pairs = (bounds_ns < limits_n[:, None]).nonzero(as_tuple=True)
        if len(pairs[0]) > most:
            distances_ns = squared_distances(points.values, samples.values)
            pairs = (distances_ns < limits_n[:, None]).nonzero(as_tuple=True)
            distances = distances_ns[pairs]
        else:
            distances = distances_of(points.values, samples.values, *pairs)

        nearest = self.nearest[rows].float().scatter_reduce(0, pairs[0], distances, "amin")
        self.rescale(rows, nearest.double())
        excess = distances.double() - self.nearest[rows][pairs[0]]
        kernels = torch.exp(excess[:, None] * (-0.5 / self.sigmas.square()))
        self.sums[rows].index_add_(0, pairs[0], kernels)

    def rescale(self, rows: slice, nearest: Tensor) -> None:
        """Express the sums in units of a nearer sample's kernel, where it is nearer."""
        before = self.nearest[rows]
        after = torch.minimum(before, nearest)
        # Before the first sample this is exp(-inf) * 0.
        gained = (after - before)[:, None] / (2 * self.sigmas.square())
        self.sums[rows] *= torch.exp(gained)
        self.nearest[rows] = after

    def merged(self, world: World) -> "KernelSums":
        """Return the sums over the samples of all ranks, the same on every rank."""
        table = torch.cat([self.nearest[:, None], self.sums], 1)[None]
        # The infinity of a rank without samples would spoil the sum of the exchange.
        table[..., 0].clamp_(max=torch.finfo(torch.float64).max / 4)
        number = torch.tensor([world.rank])
        device = world.device
        tables = rows_of_all_ranks(table.to(device), number.to(device), world.size, world).cpu()
        total = KernelSums.empty(self.sigmas, len(self.nearest))
        everything = slice(None)
        for nearest, sums in ((part[:, 0], part[:, 1:]) for part in tables):
            total.rescale(everything, nearest)
            part = KernelSums(self.sigmas, nearest.clone(), sums.clone())
            part.rescale(everything, total.nearest)
            # `rescale` takes the smaller one, so both are in units of the same kernel now.
            total.sums += part.sums
        return total

    def log_likelihoods(self, num_samples: int, num_values: int) -> Tensor:
        """Return log p(x) in nats of each point by each bandwidth, float64 (n, S)."""
        variance = self.sigmas.square()
        log_kernels = self.sums.log() - self.nearest[:, None] / (2 * variance)
        return (
            log_kernels
            - math.log(num_samples)
            - num_values / 2 * torch.log(2 * torch.pi * variance)
        )


def parzen_metrics(
    points_nD: Tensor,
    decode: Decode,
    prior: Prior,
    num_samples: int,
    seed: int,
    world: World,
    advance: Advance = lambda _: None,
) -> dict[str, float]:
    """Return the mean log-likelihood of points, in nats, with its standard error and bandwidth.

    The bandwidth is chosen on the points of even number for those of odd number and the reverse, so
    no point is scored with one that it chose. It is looked for with 10,000 samples first, then near
    what these chose. A collective: every rank takes a part of the samples, keyed by their block, so
    the result agrees for any number of ranks up to the order of sums.

    Args:
        points_nD: floats (n, D), in [0, 1] for images; the same on every rank.
        decode: returns images, of any shape with D values, on any device.
        prior: source of the codes.
        num_samples: decoded samples, from 1.
        seed: seed of the samples.
        world: the ranks that share the work.
        advance: takes the number of samples done since its last call.

    Raises:
        ValueError: fewer than two points, or no sample.
    """
    if len(points_nD) < 2 or num_samples < 1:
        raise ValueError(f"2 points and a sample are wanted; got {len(points_nD)}, {num_samples}")
    window = _Window(points_nD, decode, prior, seed, world)
    spread = float(points_nD.double().var(0, correction=0).mean().sqrt())
    octaves = torch.arange(-20, 9, dtype=torch.float64) / STEPS_PER_OCTAVE
    pilot = window.scores(max(spread, 1e-6) * 2**octaves, min(num_samples, NUM_PILOT))
    if num_samples <= NUM_PILOT:
        return _chosen(*pilot, num_samples)
    # More samples want smaller bandwidths, by the power -1 / (4 + dimension) of their number.
    sigmas, scores = pilot
    best = float(sigmas[scores.mean(0).argmax()])
    near = torch.arange(-8, 2, dtype=torch.float64) / STEPS_PER_OCTAVE
    return _chosen(*window.scores(best * 2**near, num_samples, advance), num_samples)


@dataclass(frozen=True)
class _Window:
    """Points, and the samples around which the Gaussians lie."""

    points_nD: Tensor
    decode: Decode
    prior: Prior
    seed: int
    world: World

    def scores(
        self, sigmas: Tensor, num_samples: int, advance: Advance = lambda _: None
    ) -> tuple[Tensor, Tensor]:
        """Return the bandwidths, and the log-likelihoods of the points, float64 (n, S)."""
        num_points, num_values = self.points_nD.shape
        sums = KernelSums.empty(sigmas, num_points)
        # What lies farther is below DROPPED of the largest kernel, all N samples together.
        reach = 2 * float(sigmas.max()) ** 2 * (math.log(num_samples) - math.log(DROPPED))
        centre = self.points_nD.double().mean(0)
        centred = (self.points_nD.double() - centre).float()
        directions = main_directions(centred, NUM_DIRECTIONS)
        points = Rows.centred(self.points_nD, centre, directions)

        def add_own_blocks() -> None:
            for block in range(self.world.rank, -(-num_samples // BLOCK), self.world.size):
                num = min(BLOCK, num_samples - block * BLOCK)
                codes = self.prior.sample(num, keyed_generator(self.seed, "parzen", block))
                images = self.decode(codes.to(self.world.device)).flatten(1).cpu()
                samples = Rows.centred(images, centre, directions)
                for start in range(0, num_points, POINTS_AT_ONCE):
                    rows = slice(start, start + POINTS_AT_ONCE)
                    sums.add(rows, points[rows], samples, reach)
                advance(min(BLOCK * self.world.size, num_samples - block * BLOCK))

        with torch.no_grad():
            run_on_all_ranks(self.world, add_own_blocks)
        return sigmas, sums.merged(self.world).log_likelihoods(num_samples, num_values)


def _chosen(sigmas: Tensor, scores_nS: Tensor, num_samples: int) -> dict[str, float]:
    even, odd = scores_nS[::2], scores_nS[1::2]
    for_odd, for_even = int(even.mean(0).argmax()), int(odd.mean(0).argmax())
    each = torch.cat([even[:, for_even], odd[:, for_odd]])
    return {
        "parzen/log_likelihood": each.mean().item(),
        "parzen/standard_error": (each.std() / math.sqrt(len(each))).item(),
        "parzen/sigma": float(sigmas[[for_even, for_odd]].mean()),
        "parzen/num_samples": float(num_samples),
    }
