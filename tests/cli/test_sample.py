import numpy as np
import pytest

from aae_dist.cli import main
from aae_dist.inference.images import WRITERS, grid


def test_the_grid_holds_every_image_in_reading_order():
    images = np.linspace(0.0, 1.0, 5, dtype=np.float32)[:, None, None, None].repeat(2, 2)
    images = images.repeat(3, 3)
    pixels = grid(images)
    assert pixels.shape == (5, 11, 1)
    assert pixels.dtype == np.uint8
    corners = [pixels[top, left, 0] for top in (0, 3) for left in (0, 4, 8)]
    assert corners == [0, 64, 128, 191, 255, 255]


def test_pixels_out_of_range_are_clipped():
    images = np.array([-3.0, 7.0], dtype=np.float32).reshape(2, 1, 1, 1)
    assert grid(images)[0, :, 0].tolist() == [0, 255, 255]


def test_colour_images_keep_their_channels():
    images = np.zeros((1, 3, 4, 4), dtype=np.float32)
    images[:, 2] = 1.0
    assert grid(images)[0, 0].tolist() == [0, 0, 255]


def test_every_format_can_be_written_and_read_back(tmp_path):
    from PIL import Image
    from safetensors.numpy import load_file

    images = np.random.default_rng(0).random((3, 1, 4, 5), dtype=np.float32)
    for suffix, write in WRITERS.items():
        write(tmp_path / f"x{suffix}", images)
    assert np.array_equal(np.load(tmp_path / "x.npy"), images)
    assert np.array_equal(np.load(tmp_path / "x.npz")["images"], images)
    assert np.array_equal(load_file(tmp_path / "x.safetensors")["images"], images)
    with Image.open(tmp_path / "x.png") as picture:
        assert picture.mode == "L"


def test_grids_of_small_images_are_scaled_up_by_a_whole_number(tmp_path):
    from PIL import Image

    def written(*shape):
        WRITERS[".png"](tmp_path / "x.png", np.zeros(shape, dtype=np.float32))
        with Image.open(tmp_path / "x.png") as picture:
            return picture.size

    assert written(3, 1, 4, 5) == (8 * 11, 8 * 9)
    assert grid(np.zeros((36, 1, 28, 28), dtype=np.float32)).shape[1] == 173
    assert written(36, 1, 28, 28) == (4 * 173, 4 * 173)
    assert written(4, 1, 400, 400) == (801, 801)


def test_an_unknown_suffix_is_refused_before_the_run_is_loaded(capsys):
    assert main(["sample", "/nowhere", "--out", "x.gif"]) == 2
    assert "should be one of .png, .npy, .npz, .safetensors" in capsys.readouterr().err


def test_classes_of_a_prior_without_any_are_refused_before_a_checkpoint_is_read(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("prior: {kind: gaussian}\n")  # there is no checkpoint
    assert main(["sample", str(tmp_path), "--out", "x.png", "--classes", "0,1"]) == 2
    assert "the prior of" in (err := capsys.readouterr().err)
    assert "(gaussian) has none" in err
    (tmp_path / "config.yaml").write_text("prior: {kind: mixture}\n")
    assert main(["sample", str(tmp_path), "--out", "x.png", "--classes", "0,1"]) == 2
    assert "no checkpoint that verifies" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [["sample", "--out", "x.png"], ["evaluate"]])
def test_a_folder_without_a_run_exits_2(argv, tmp_path, capsys):
    assert main([*argv, str(tmp_path / "gone")]) == 2
    err = capsys.readouterr().err
    assert err.startswith("aae-dist: ")
    assert "gone" in err
    assert "Traceback" not in err
