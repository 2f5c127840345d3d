import pytest
import torch

from aae_dist.inference.images import between, plane, traversal


@pytest.mark.parametrize("path", ["linear", "spherical"])
def test_a_way_begins_and_ends_where_it_should(path):
    generator = torch.Generator().manual_seed(0)
    start, end = torch.randn(2, 6, 5, generator=generator)
    way = between(start, end, 7, path)
    assert way.shape == (6, 7, 5)
    assert torch.allclose(way[:, 0], start, atol=1e-6)
    assert torch.allclose(way[:, -1], end, atol=1e-6)


def test_a_straight_way_is_evenly_spaced():
    way = between(torch.zeros(1, 2), torch.tensor([[4.0, 8.0]]), 5, "linear")
    assert way[0].tolist() == [[0, 0], [1, 2], [2, 4], [3, 6], [4, 8]]


def test_a_spherical_way_turns_evenly_and_keeps_its_length():
    way = between(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 4.0]]), 4, "spherical")[0]
    angles = torch.atan2(way[:, 1], way[:, 0])
    assert torch.allclose(angles, torch.linspace(0, torch.pi / 2, 4), atol=1e-6)
    assert torch.allclose(way.norm(dim=1), torch.linspace(2, 4, 4), atol=1e-6)


def test_codes_without_an_angle_between_them_go_straight():
    start = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    end = torch.tensor([[3.0, 0.0], [-1.0, 0.0], [2.0, 0.0]])
    way = between(start, end, 3, "spherical")
    assert torch.allclose(way[0, 1], torch.tensor([2.0, 0.0]))
    assert way.isfinite().all()


def test_a_traversal_moves_one_dimension_at_a_time():
    code = torch.tensor([5.0, 6.0, 7.0])
    low, high = torch.tensor([0.0, -1.0, -2.0]), torch.tensor([1.0, 1.0, 2.0])
    codes = traversal(code, low, high, 3)
    assert codes.shape == (3, 3, 3)
    for row in range(3):
        others = [i for i in range(3) if i != row]
        assert torch.equal(codes[row][:, others], code[others].expand(3, 2))
        middle = (low[row] + high[row]) / 2
        assert codes[row, :, row].tolist() == [low[row], middle, high[row]]


def test_a_plane_has_its_corners_where_they_were_given():
    corners = torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.0, 0.0], [1.0, 0.0]])
    codes = plane(corners, 3, "linear")
    assert torch.equal(codes[0, 0], corners[0])
    assert torch.equal(codes[0, -1], corners[1])
    assert torch.equal(codes[-1, 0], corners[2])
    assert codes[1, 1].tolist() == [0.5, 0.5]
