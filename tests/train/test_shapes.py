"""Shapes against closed forms and the published statistics."""

import numpy as np
import pytest
from scipy import ndimage

from mood_train.anomalies.edges import SIGMA_PER_KERNEL, soften
from mood_train.anomalies.shapes import SHAPES, cuboid, draw_shape, random_walk, sphere


def test_sphere_has_the_volume_of_a_ball() -> None:
    for seed in range(20):
        rng, twin = np.random.default_rng(seed), np.random.default_rng(seed)
        mask = sphere(rng, 12, 40)
        radius = twin.uniform(12, 40) / 2
        assert mask.sum() == pytest.approx(4 / 3 * np.pi * radius**3, rel=0.05)
        assert max(mask.shape) <= 40


def test_cuboids_fill_their_box_unless_rotated() -> None:
    shares = [mask.mean() for mask in (cuboid(np.random.default_rng(seed), 8, 40) for seed in range(60))]
    straight = sum(share == 1 for share in shares)
    assert 18 <= straight <= 42  # half of 60, three standard deviations about
    assert min(shares) > 0.1


@pytest.mark.parametrize("kind", list(SHAPES))
def test_every_shape_fits_and_touches_its_box(kind: str) -> None:
    for seed in range(25):
        mask = SHAPES[kind](np.random.default_rng(seed), 4, 51)
        assert max(mask.shape) <= 51
        for axis in range(3):
            sides = np.moveaxis(mask, axis, 0)
            assert sides[0].any() and sides[-1].any()


def test_random_walks_are_as_large_as_the_published_ones() -> None:
    """300 published shapes on a canvas of 128: boxes of 24 to 84 voxels, about 50; 6k to 154k voxels."""
    masks = [random_walk(np.random.default_rng(seed), 8, 128) for seed in range(12)]
    boxes = np.array([np.mean(mask.shape) for mask in masks])
    voxels = np.array([mask.sum() for mask in masks])
    assert 35 <= np.median(boxes) <= 70
    assert 6e3 <= np.median(voxels) <= 154e3
    pieces = [ndimage.label(mask)[1] for mask in masks]
    assert np.mean(np.array(pieces) == 1) > 0.8


def test_the_odds_decide_the_kind() -> None:
    rng = np.random.default_rng(0)
    for _ in range(5):
        mask = draw_shape(rng, {"sphere": 1.0, "cuboid": 0.0}, 10, 20)
        assert not mask[0, 0, 0] and mask[tuple(n // 2 for n in mask.shape)]


def test_hard_edges_are_the_mask_itself() -> None:
    mask = random_walk(np.random.default_rng(1), 4, 30)
    assert np.array_equal(soften(mask, 1), mask.astype(np.float32))


@pytest.mark.parametrize("kernel", [3, 5, 7])
def test_soft_edges_are_the_gaussian_filter_of_the_mask(kernel: int) -> None:
    mask = np.ones((9, 9, 9), dtype=bool)
    reach = (kernel - 1) // 2
    offsets = np.arange(-reach, reach + 1)
    line = np.exp(-0.5 * (offsets / (SIGMA_PER_KERNEL * kernel)) ** 2)
    line /= line.sum()
    profile = np.convolve(np.pad(np.ones(9), reach), line, mode="same")
    expected = profile[:, None, None] * profile[None, :, None] * profile[None, None, :]
    assert np.allclose(soften(mask, kernel), expected, atol=1e-6)
