"""The grid of classes and styles."""

import io

import torch
from PIL import Image

from aae_dist.evaluation.class_pictures import draw_classes
from aae_dist.evaluation.classes import codes_of_classes
from aae_dist.evaluation.evaluator import EvaluationImages
from aae_dist.priors import CategoricalPrior, GaussianPrior, MixturePrior, ProductPrior


def draw() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_a_column_has_one_style_and_a_row_one_class() -> None:
    prior = ProductPrior([GaussianPrior(2), CategoricalPrior(3)])
    codes = codes_of_classes(prior, 5, draw())
    assert codes is not None
    assert codes.shape == (3, 5, 5)
    assert torch.equal(codes[0, :, :2], codes[2, :, :2])
    assert codes[:, :, 2:].argmax(2).tolist() == [[0] * 5, [1] * 5, [2] * 5]


def test_classes_of_a_mixture_are_its_modes_and_a_gaussian_has_none() -> None:
    codes = codes_of_classes(MixturePrior(2, num_modes=4), 6, draw())
    assert codes is not None
    assert codes.mean(1)[0, 0] > 1 > codes.mean(1)[1, 0]
    assert codes.shape == (4, 6, 2)
    assert codes_of_classes(GaussianPrior(2), 6, draw()) is None
    one_hot = codes_of_classes(CategoricalPrior(3), 6, draw())
    assert one_hot is not None
    assert one_hot.shape == (3, 1, 3)


def images_of(grid: torch.Tensor | None) -> EvaluationImages:
    few = torch.zeros(2, *(grid.shape[2:] if grid is not None else (1, 4, 4)))
    codes = torch.zeros(2, 2)
    return EvaluationImages(codes, torch.zeros(2), codes, few, few, few, class_grid=grid)


def test_the_picture_has_a_row_per_class() -> None:
    grid = torch.zeros(3, 8, 1, 8, 8)
    grid[1] = 1.0
    png = draw_classes(images_of(grid))["classes"]
    pixels = Image.open(io.BytesIO(png)).convert("L")
    width, height = pixels.size
    title = height - round(width * 3 / 8)
    row = (height - title) / 3
    values = [pixels.getpixel((width // 16, round(title + row * (n + 0.5)))) for n in range(3)]
    assert values == [0, 255, 0]
    vectors = draw_classes(images_of(torch.rand(3, 8, 1, 1, 5)))
    assert vectors["classes"].startswith(b"\x89PNG")
    assert draw_classes(images_of(None)) == {}
