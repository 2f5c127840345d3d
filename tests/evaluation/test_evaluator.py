import math
from functools import cache

import pytest
import torch
from helpers.evaluating import Images, Networks, Normal, exact_metrics, metrics_and_error
from helpers.ranks import run_ranks

from aae_dist.distributed.world import single
from aae_dist.errors import DataError
from aae_dist.evaluation import Evaluation, Evaluator
from aae_dist.utils.arrays import stratified


def evaluate(networks: Networks, dataset: Images) -> Evaluation:
    return Evaluator(dataset, Normal(2), single(), seed=0).evaluate(networks)


@cache
def evaluated() -> tuple[Images, Evaluation]:
    """Return 600 images and their evaluation."""
    dataset = Images(600)
    return dataset, evaluate(Networks(), dataset)


def test_metrics_are_what_they_say():
    (dataset, result), networks = evaluated(), Networks()
    codes = result.images.codes
    error = (networks.decode(codes) - dataset.images.float() / 255).square()
    assert result.metrics["reconstruction/mse"] == pytest.approx(error.mean().item(), rel=1e-5)
    assert result.metrics["reconstruction/sum_half"] == pytest.approx(
        error.sum().item() / 600 / 2, rel=1e-5
    )
    assert result.metrics["prior_match/num_samples"] == 600
    called_codes = (codes[:, 0] <= 0).float().mean().item()
    assert result.metrics["discriminator/accuracy_codes"] == pytest.approx(called_codes)
    assert 0.45 < result.metrics["discriminator/accuracy_prior"] < 0.55
    assert result.metrics["prior_match/mmd"] > 1.5
    assert dataset.largest_read == 256


def test_images_holds_what_the_pictures_show():
    (dataset, result), networks = evaluated(), Networks()
    images = result.images
    assert images.labels.tolist() == [i % 10 for i in range(600)]
    assert torch.equal(images.originals, dataset.images[stratified(32, 600)])
    assert images.reconstructions.shape == images.decoded_prior.shape == (32, 1, 4, 4)
    assert torch.equal(images.decoded_prior, networks.decode(images.prior_samples[:32]))


def test_evaluating_again_gives_the_same_numbers_and_touches_no_global_state():
    state = torch.get_rng_state()
    evaluator = Evaluator(Images(64), Normal(2), single(), seed=0)
    first = evaluator.evaluate(Networks()).metrics
    assert evaluator.evaluate(Networks()).metrics == first
    assert torch.equal(torch.get_rng_state(), state)


def test_threads_share_the_decoding_and_change_no_number():
    (alone, first), shared = evaluated(), Images(600)
    evaluator = Evaluator(shared, Normal(2), single(), seed=0, threads=3)
    assert evaluator.evaluate(Networks()).metrics == first.metrics
    assert alone.workers is None
    assert shared.workers._max_workers == 3


def test_a_large_validation_set_is_thinned_out_over_its_classes():
    evaluator = Evaluator(Images(1000), Normal(2), single(), seed=0, max_samples=100)
    result = evaluator.evaluate(Networks())
    assert result.metrics["prior_match/num_samples"] == 100
    # The labels are 0 to 9 in turns: every tenth sample would have the same.
    assert min(result.images.labels.bincount(minlength=10)) >= 4


def test_without_a_discriminator_there_is_no_accuracy_of_one():
    result = evaluate(Networks(with_discriminator=False), Images(64))
    assert not any(name.startswith("discriminator/") for name in result.metrics)


def test_float64_networks_are_evaluated_too():
    result = evaluate(Networks(torch.float64), Images(64))
    assert math.isfinite(result.metrics["prior_match/c2st"])


def test_a_validation_set_of_a_few_samples_is_refused():
    with pytest.raises(DataError, match="^data.validation: 5 samples are too few"):
        Evaluator(Images(5), Normal(2), single(), seed=0)
    with pytest.raises(DataError, match="^mine: 5 samples are too few"):
        Evaluator(Images(5), Normal(2), single(), seed=0, name="mine")


def test_samples_that_cannot_be_read_are_left_out_and_counted():
    bad = (0, 17, 599)
    result = evaluate(Networks(), Images(600, bad))
    kept = [n for n in range(600) if n not in bad]
    whole = evaluated()[1].images
    assert torch.equal(result.images.codes, whole.codes[kept])
    assert result.images.labels.tolist() == [n % 10 for n in kept]
    assert torch.equal(result.images.originals[0], Images(600).images[1])
    assert result.metrics["prior_match/num_samples"] == 597
    assert result.metrics["data/bad_validation_samples"] == 3
    with pytest.raises(DataError, match="^data.validation: of 600 samples 5 can be read and 8 are"):
        evaluate(Networks(), Images(600, tuple(range(595))))


@pytest.mark.distributed
def test_any_number_of_ranks_gives_the_same_metrics_and_the_same_error():
    bad = (0, 299, 650)
    alone = exact_metrics(single(), 700, bad)
    assert {"prior_match/mmd", "samples/coverage"} <= alone.keys()
    for size in (2, 5):  # of five ranks two have no chunk
        for metrics, error in run_ranks(metrics_and_error, size, 700, bad, 300):
            assert metrics == alone
            assert error == "no room for sample 300."  # which only one of the ranks reads
