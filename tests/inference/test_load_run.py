from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.trained import save_run

import aae_dist
from aae_dist.errors import CheckpointError, ConfigError, LaunchError
from aae_dist.storage import base


@pytest.fixture
def run(tmp_path: Path) -> aae_dist.TrainedRun:
    save_run(tmp_path, prior={"kind": "mixture", "num_modes": 3})
    return aae_dist.load_run(str(tmp_path))


def test_codes_of_bytes_and_of_fractions_are_equal(run: aae_dist.TrainedRun) -> None:
    images = torch.randint(0, 256, (5, 1, 28, 28), dtype=torch.uint8)
    codes = run.encode(images)
    assert codes.shape == (5, 2)
    assert torch.equal(codes, run.encode(images / 255))
    assert torch.equal(run.reconstruct(images), run.decode(codes))
    assert not codes.requires_grad


def test_codes_are_drawn_from_the_posterior_with_a_generator(tmp_path: Path) -> None:
    save_run(tmp_path, posterior={"kind": "gaussian"})
    run, images = aae_dist.load_run(str(tmp_path)), torch.rand(400, 1, 28, 28)
    first, again = (
        run.encode(images, generator=torch.Generator().manual_seed(0)) for _ in range(2)
    )
    assert torch.equal(first, again)
    mean = run.encode(images)
    assert 0.01 < (first - mean).std() < 100
    assert abs((first - mean).mean()) < 0.2 * (first - mean).std()


@pytest.mark.parametrize(
    ("images", "problem"),
    [
        (torch.zeros(2, 28), r"must have shape \(B, 1, 28, 28\); got \(2, 28\)"),
        (torch.zeros(2, 3, 28, 28), r"got \(2, 3, 28, 28\)"),
        (torch.zeros(2, 1, 28, 28, dtype=torch.int64), "uint8 or floats in .*; got torch.int64"),
        (torch.full((2, 1, 28, 28), 255.0), "got floats from 255 to 255"),
        (torch.full((2, 1, 28, 28), torch.nan), "got floats from nan to nan"),
    ],
)
def test_what_is_no_image_is_refused(
    run: aae_dist.TrainedRun, images: torch.Tensor, problem: str
) -> None:
    with pytest.raises(ValueError, match=problem):
        run.encode(images)


def as_given(images: torch.Tensor) -> list[Any]:
    """The same images in each form that a user may have."""
    array = images.numpy()
    read_only = array.copy()
    read_only.flags.writeable = False
    return [
        *(array, list(array), tuple(images), list(images), [images[0], array[1]], array.tolist()),
        *(read_only, array[::-1][::-1], np.asfortranarray(array)),
    ]


def test_arrays_and_lists_are_encoded_as_tensors_are(run: aae_dist.TrainedRun) -> None:
    images = torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    codes = run.encode(images)
    for given in as_given(images):
        assert torch.equal(run.encode(given), codes)
        assert torch.equal(run.reconstruct(given), run.reconstruct(images))
    for given in as_given(codes):
        assert torch.equal(run.decode(given), run.decode(codes))
    for dtype in (np.float64, ">f4", np.float16):
        assert torch.allclose(run.encode(images.numpy().astype(dtype)), codes, atol=1e-2)
    pixels = (images * 255).to(torch.uint8)
    assert torch.equal(run.encode(pixels.numpy()), run.encode(pixels))
    labels = torch.tensor([2, 0])
    for chosen in ([2, 0], np.array([2, 0]), np.array([2, 0], np.uint8), (2, np.int32(0))):
        assert torch.equal(run.sample(2, labels=chosen), run.sample(2, labels=labels))


@pytest.mark.parametrize(
    ("images", "problem"),
    [
        (np.zeros((2, 28)), r"must have shape \(B, 1, 28, 28\); got \(2, 28\)"),
        (
            [np.zeros((1, 28, 28)), np.zeros((1, 27, 28))],
            r"one shape; got \(1, 27, 28\), \(1, 28, 28",
        ),
        ([torch.zeros(1, 28, 28), torch.zeros(28)], r"one shape; got \(1, 28, 28\), \(28,\)"),
        ([[1, 2], [3]], "images must have one shape"),
        (np.zeros((2, 1, 28, 28), np.uint16), "uint8 or floats in .*; got torch.uint16"),
        (np.zeros((2, 1, 28, 28), "U1"), "images must be numbers; got an array of <U1"),
        (np.array([None]), "images must be numbers; got an array of object"),
        ("photo.png", "a tensor, an array or a list of them; got str"),
        (None, "a tensor, an array or a list of them; got NoneType"),
        ([], r"must have shape \(B, 1, 28, 28\); got \(0,\)"),
        (np.ma.masked_less(np.zeros((1, 1, 28, 28)), 1), r"no masked values; fill them"),
        ([np.ma.masked_less(np.zeros((1, 28, 28)), 1)], r"no masked values; fill them"),
        (torch.zeros(1, 1, 28, 28).to_sparse(), "a plain dense tensor"),
        (torch.zeros(1, 1, 28, 28, device="meta"), "must have values"),
    ],
)
def test_other_values_than_images_say_what_was_got(
    run: aae_dist.TrainedRun, images: Any, problem: str
) -> None:
    with pytest.raises(ValueError, match=problem):
        run.encode(images)


def test_vectors_may_lack_the_axes_of_an_image(tmp_path: Path) -> None:
    save_run(tmp_path, shape=(1, 1, 5), model={"decoder_output": "linear"})
    trained = aae_dist.load_run(str(tmp_path))
    vectors = np.random.default_rng(0).normal(size=(3, 5))
    assert torch.equal(trained.encode(vectors), trained.encode(vectors[:, None, None]))
    with pytest.raises(ValueError, match=r"must have shape \(B, 1, 1, 5\)"):
        trained.encode(vectors[0])


def test_labels_that_are_no_integers_are_refused(run: aae_dist.TrainedRun) -> None:
    with pytest.raises(ValueError, match="labels must be integers; got torch.float64"):
        run.sample(2, labels=np.array([0.0, 1.0]))


def test_codes_of_another_size_are_refused(run: aae_dist.TrainedRun) -> None:
    with pytest.raises(ValueError, match=r"codes must have shape \(B, 2\); got \(4, 3\)"):
        run.decode(torch.zeros(4, 3))


def test_samples_repeat_and_follow_their_classes(run: aae_dist.TrainedRun) -> None:
    assert torch.equal(run.sample(4), run.sample(4))
    other = run.sample(4, generator=torch.Generator().manual_seed(3))
    assert not torch.equal(run.sample(4), other)
    labels = torch.tensor([2, 0])
    drawn = run.prior.sample_class(labels, torch.Generator().manual_seed(1))
    images = run.sample(2, torch.Generator().manual_seed(1), labels)
    assert torch.equal(images, run.decode(drawn))
    for wrong in (torch.tensor([0, 3]), torch.tensor([-1, 0]), torch.tensor([0])):
        with pytest.raises(ValueError, match="labels must"):
            run.sample(2, labels=wrong)


def test_a_prior_without_classes_says_so(tmp_path: Path) -> None:
    save_run(tmp_path)
    with pytest.raises(ValueError, match="gaussian.* has no classes"):
        aae_dist.load_run(str(tmp_path)).sample(1, labels=torch.tensor([0]))


def test_a_run_lies_in_a_bucket_as_well(
    s3: Callable[[], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "_REREAD_SECONDS", (0.0, 0.0, 0.0))
    uri = f"{s3()}/runs/a"
    for place in (uri, tmp_path):
        save_run(place)
    images = torch.zeros(1, 1, 28, 28, dtype=torch.uint8)
    far, near = aae_dist.load_run(uri), aae_dist.load_run(str(tmp_path))
    assert torch.equal(far.encode(images), near.encode(images))
    with pytest.raises(CheckpointError, match="holds no checkpoint that verifies"):
        aae_dist.load_run(f"{uri}/elsewhere")
    with pytest.raises(LaunchError, match="bucket does not exist"):
        aae_dist.load_run("s3://no-such-bucket/run")


def test_the_checkpoint_of_a_step_is_loaded_or_those_that_exist_are_named(tmp_path: Path) -> None:
    for step in (7, 9):
        save_run(tmp_path, step)
    assert aae_dist.load_run(str(tmp_path)).step == 9
    old = aae_dist.load_run(str(tmp_path), checkpoint=7)
    assert old.step == aae_dist.load_run(str(tmp_path), checkpoint="7").step == 7
    assert old.fingerprint() != aae_dist.load_run(str(tmp_path)).fingerprint()
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 8. There are \[7, 9\]"):
        aae_dist.load_run(str(tmp_path), checkpoint=8)
    with pytest.raises(ValueError, match="best, newest or a step; got 'worst'"):
        aae_dist.load_run(str(tmp_path), checkpoint="worst")


def test_the_best_checkpoint_is_the_last_that_was_marked(tmp_path: Path) -> None:
    save_run(tmp_path, 6)
    with pytest.raises(CheckpointError, match=r"has no best checkpoint: .* There are \[6\]"):
        aae_dist.load_run(str(tmp_path), checkpoint="best")
    for step, best in ((7, True), (8, True), (9, False)):
        save_run(tmp_path, step, best=best)
    assert aae_dist.load_run(str(tmp_path), checkpoint="best").step == 8
    assert aae_dist.load_run(str(tmp_path), checkpoint="newest").step == 9
    with pytest.raises(CheckpointError, match="holds no checkpoint that verifies"):
        aae_dist.load_run(str(tmp_path / "elsewhere"), checkpoint="best")


def test_the_newest_checkpoint_that_verifies_is_taken(tmp_path: Path) -> None:
    for step in (7, 9):
        save_run(tmp_path, step)
    [weights] = tmp_path.glob("checkpoints/step-000000009/model.safetensors")
    weights.write_bytes(bytes(weights.stat().st_size))
    assert aae_dist.load_run(str(tmp_path)).step == 7


def test_data_of_ones_own_can_be_opened(run: aae_dist.TrainedRun, tmp_path: Path) -> None:
    images, labels = run.open("builtin://digits/train").read(np.arange(3))
    assert images.shape == (3, 1, 28, 28)
    assert (labels >= 0).all()
    save_run(tmp_path / "blind", data={"train": "builtin://digits/train"})
    with pytest.raises(ConfigError, match="trained without data.validation"):
        aae_dist.load_run(str(tmp_path / "blind")).evaluate()


def test_a_run_is_loaded_from_a_path_and_shows_what_it_is(tmp_path: Path) -> None:
    save_run(tmp_path)
    run = aae_dist.load_run(tmp_path)
    text = f"<TrainedRun saved, step 7, prior gaussian, latent_dim 2: {tmp_path}>"
    assert repr(run) == text
    with pytest.raises(ValueError, match="num should be a whole number from 0 on"):
        run.sample(-1)
    with pytest.raises(LaunchError, match="Download it first: aae-dist pull"):
        aae_dist.load_run("hf://somebody/run")
