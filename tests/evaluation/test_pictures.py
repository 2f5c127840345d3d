import dataclasses
import io
import struct
import threading

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from aae_dist.evaluation import EvaluationImages, pictures as pictures
from aae_dist.evaluation.pictures import latent_codes, loss_curves, principal_axes
from aae_dist.evaluation.vectors import draw_traversal
from aae_dist.priors import GaussianPrior, SwissRollPrior
from aae_dist.utils.arrays import figure_to_png

pytestmark = pytest.mark.run  # waits for time-outs, servers or pictures


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gallery(latent_dim: int, channels: int, pictured: int) -> EvaluationImages:
    images = torch.rand(pictured, channels, 6, 5, generator=torch.Generator().manual_seed(1))
    return EvaluationImages(
        codes=normal(100, latent_dim),
        labels=torch.arange(100) % 10,
        prior_samples=normal(200, latent_dim, seed=1),
        originals=(images * 255).to(torch.uint8),
        reconstructions=images,
        decoded_prior=images,
    )


def size(figure_to_png: bytes) -> tuple[int, int]:
    assert figure_to_png.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", figure_to_png[16:24])
    return width, height


@pytest.mark.parametrize(("latent_dim", "channels", "pictured"), [(1, 1, 3), (2, 3, 32), (5, 1, 9)])
def test_every_evaluation_gives_its_three_pictures(latent_dim, channels, pictured):
    drawn = pictures.draw_all(gallery(latent_dim, channels, pictured))
    assert set(drawn) == {"reconstructions", "prior_samples", "latent_codes"}
    assert all(min(size(figure_to_png)) >= 100 for figure_to_png in drawn.values())


def test_a_reconstruction_stands_below_its_original():
    white = torch.full((1, 1, 8, 8), 255, dtype=torch.uint8)
    drawn = figure_to_png(pictures.reconstructions(white, torch.zeros(1, 1, 8, 8)))
    pixels = np.asarray(Image.open(io.BytesIO(drawn)).convert("L"))
    column = pixels[:, pixels.shape[1] // 16]
    dark = np.flatnonzero(column < 50)
    assert len(dark) > 10
    assert dark.min() > 0.55 * len(column)


def grey_of(figure: Figure) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(figure_to_png(figure))).convert("L"))


def test_floats_are_pictured_like_the_bytes_they_stand_for():
    images = torch.randint(0, 256, (8, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    as_bytes, as_floats = images.to(torch.uint8), images.float() / 255
    drawn = [grey_of(pictures.reconstructions(x, as_floats)) for x in (as_bytes, as_floats)]
    assert np.array_equal(*drawn)


def test_numbers_beyond_one_are_scaled_alike_above_and_below():
    wide = normal(8, 1, 8, 8) * 4 + 20
    drawn = grey_of(pictures.reconstructions(wide, wide))
    inside = drawn[len(drawn) // 4 :, : drawn.shape[1] // 8]
    assert len(np.unique(inside)) > 20  # neither black nor white throughout


@pytest.mark.parametrize("shape", [(1, 1, 20), (2, 60)], ids=["vectors", "signals"])
def test_vectors_and_signals_are_drawn_as_lines(shape):
    vectors = normal(9, *shape) * 3
    figure = pictures.reconstructions(vectors, vectors * 0.9, "a run")
    originals, others, frames = figure.axes[0].collections
    assert len(frames.get_segments()) == 9
    scale = float(vectors.max() - vectors.min())
    for lines, factor in ((originals, 1.0), (others, 0.9)):
        drawn = lines.get_segments()[3 * shape[0]]
        place = frames.get_segments()[3]
        heights = (drawn[:, 1] - place[0, 1]) * scale + float(vectors.min())
        assert np.allclose(heights, vectors[3].flatten(0, -2)[0] * factor, atol=1e-5)
        assert (drawn[0, 0], drawn[-1, 0]) == pytest.approx((place[0, 0], place[1, 0]))
    size(figure_to_png(figure))
    example = dataclasses.replace(
        gallery(2, 1, 9), originals=vectors, reconstructions=vectors, decoded_prior=vectors
    )
    assert len(pictures.draw_all(example)) == 3


def test_volumes_are_shown_by_their_middle_slices():
    volumes = normal(9, 1, 5, 8, 8).sigmoid()
    whole = grey_of(pictures.reconstructions(volumes, volumes * 0.5))
    assert np.array_equal(
        whole, grey_of(pictures.reconstructions(volumes[:, :, 2], volumes[:, :, 2] * 0.5))
    )
    traversal = draw_traversal(volumes[:8].unflatten(0, (2, 4)), torch.zeros(2, 4))
    assert len(traversal.axes[0].images) == 8


def test_vectors_of_many_features_are_two_heat_maps_and_one_plot_of_values():
    x = normal(32, 1, 1, 500) * 3
    figure = pictures.reconstructions(x, x * 0.5, "a run")
    left, right, values = figure.axes[:3]
    assert np.array_equal(left.images[0].get_array(), x.flatten(1).double())
    assert left.images[0].get_clim() == right.images[0].get_clim()
    drawn_x, drawn_x_hat = values.get_lines()[1].get_data()
    assert np.allclose(drawn_x_hat, drawn_x / 2)
    assert (values.get_xlabel(), values.get_ylabel()) == ("x", "x reconstructed")
    assert len(pictures.decoded_samples(x).axes) == 2  # one map and its colours
    size(figure_to_png(figure))


def test_a_traversal_names_each_dimension_and_value():
    values = torch.linspace(-2, 2, 5).expand(3, 5)
    figure = draw_traversal(torch.rand(3, 5, 1, 7, 9), values, "a run")
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert [t for t in texts if t.startswith("$")] == ["$z_{1}$", "$z_{2}$", "$z_{3}$"]
    assert texts[1:6] == ["-2.00", "-1.00", "+0.00", "+1.00", "+2.00"]
    assert len(figure.axes[0].images) == 15
    lines = draw_traversal(torch.rand(3, 5, 1, 1, 9), values, "a run")
    assert [axes.get_ylabel() for axes in lines.axes] == ["$z_{1}$", "$z_{2}$", "$z_{3}$"]
    for drawn in (figure, lines):
        size(figure_to_png(drawn))


@pytest.mark.parametrize("dim", [2, 5])
def test_the_line_of_a_known_prior_is_that_of_its_density(dim):
    prior = GaussianPrior(dim)
    figure = latent_codes(normal(500, dim), torch.zeros(500), normal(300, dim, seed=1), prior=prior)
    main = figure.axes[0]
    [line] = [p for c in main.collections if hasattr(c, "levels") for p in c.get_paths()]
    radius = np.hypot(*(line.vertices - line.vertices.mean(0)).T)
    # 90 % of a Gaussian of the plane lie within sqrt(2 ln 10) = 2.146; a histogram is ragged.
    assert np.abs(radius - 2.146).max() < 0.06


def test_a_prior_without_a_density_is_drawn_by_its_samples():
    prior = SwissRollPrior(2)
    codes = prior.sample(500, torch.Generator().manual_seed(0))
    size(figure_to_png(latent_codes(codes, torch.zeros(500), codes, prior=prior)))


@pytest.mark.parametrize("num_labels", [0, 10, 20, 100])
def test_codes_are_drawn_for_any_number_of_labels(num_labels):
    labels = torch.arange(300) % num_labels if num_labels else torch.full((300,), -1)
    labels[0] = -1
    size(figure_to_png(latent_codes(normal(300, 2), labels, normal(300, 2, seed=1))))


def test_codes_that_are_collapsed_or_not_finite_are_drawn_too():
    labels, prior = torch.zeros(50, dtype=torch.long), normal(50, 3)
    some = normal(50, 3, seed=1)
    some[7] = torch.nan
    for codes in (torch.zeros(50, 3), torch.full((50, 3), torch.nan), some):
        size(figure_to_png(latent_codes(codes, labels, prior)))


def test_principal_axes_are_those_of_largest_variance():
    codes = normal(2000, 3).double() * torch.tensor([0.5, 3.0, 1.0]) + 7
    mean, axes, shares = principal_axes(codes)
    assert torch.allclose(mean, codes.mean(0))
    assert axes[1, 0] > 0.99
    assert axes[2, 1] > 0.99
    assert shares[0].item() == pytest.approx(9 / 10.25, abs=0.03)


def test_curves_have_a_panel_for_each_loss_and_each_kind_of_score():
    records = [
        {"step": s, "samples_seen": s * 8, "loss/reconstruction": 1 / s, "loss/discriminator": 1.3}
        for s in range(1, 50)
    ]
    records[10] |= {"prior_match/c2st": 0.7, "prior_match/mmd": 2.0, "reconstruction/mse": None}
    figure = loss_curves(records)
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles[:3] == [
        "reconstruction loss",
        "discriminator loss",
        "accuracy of a two-sample test (C2ST)",
    ]
    assert len(titles) == 4
    size(figure_to_png(figure))


def test_a_run_without_records_has_an_empty_picture():
    size(figure_to_png(loss_curves([])))


def test_pictures_are_drawn_in_any_thread_at_once():
    drawn: list[dict[str, bytes]] = []
    example = gallery(2, 1, 4)
    threads = [
        threading.Thread(target=lambda: drawn.append(pictures.draw_all(example))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert drawn[0] == drawn[1]
