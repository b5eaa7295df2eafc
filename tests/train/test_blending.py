"""Both ways of blending, against closed forms."""

import numpy as np
import pytest

from mood_train.anomalies.blending import blend_linear, blend_poisson


@pytest.fixture()
def ball() -> np.ndarray:
    x, y, z = np.meshgrid(*[np.arange(20) - 9.5] * 3, indexing="ij")
    return (x**2 + y**2 + z**2 < 49).astype(np.float32)


def test_linear_is_the_formula_and_leaves_the_rest_bit_for_bit(ball: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    image, foreign = rng.random((2, 20, 20, 20), dtype=np.float32)
    alpha = ball * np.float32(0.4)
    blended = blend_linear(image, foreign, alpha)
    assert np.allclose(blended[ball > 0], (0.6 * image + 0.4 * foreign)[ball > 0], atol=1e-7)
    assert np.array_equal(blended[ball == 0], image[ball == 0])


def test_poisson_without_foreign_gradients_is_the_harmonic_function(ball: np.ndarray) -> None:
    """A constant patch at alpha 1 must be filled by the harmonic continuation: of a ramp, the ramp."""
    line = np.linspace(0.2, 0.8, 20, dtype=np.float32)
    ramp = np.broadcast_to(line[:, None, None], (20, 20, 20)).copy()
    spoilt = np.where(ball > 0, np.float32(0), ramp)
    solved = blend_poisson(spoilt, np.full_like(ramp, 0.5), ball)
    assert np.abs(solved - ramp).max() < 2e-3


def test_poisson_with_the_image_itself_shifted_gives_the_image(ball: np.ndarray) -> None:
    image = 0.2 + 0.5 * np.random.default_rng(1).random((20, 20, 20), dtype=np.float32)
    assert np.allclose(blend_poisson(image, image + np.float32(0.2), ball), image, atol=1e-5)


def test_poisson_satisfies_its_equation(ball: np.ndarray) -> None:
    rng = np.random.default_rng(2)
    image = 0.5 + 0.02 * rng.random((20, 20, 20), dtype=np.float32)
    foreign = 0.5 + 0.02 * rng.random((20, 20, 20), dtype=np.float32)
    alpha = ball * np.float32(0.7)
    solved = blend_poisson(image, foreign, alpha).astype(np.float64)

    def laplacian(array: np.ndarray) -> np.ndarray:
        inner = -6 * array[1:-1, 1:-1, 1:-1]
        for axis in range(3):
            for step in (-1, 1):
                inner = inner + np.roll(array, step, axis)[1:-1, 1:-1, 1:-1]
        return inner

    inside = ball[1:-1, 1:-1, 1:-1] > 0
    wanted = 0.3 * laplacian(image.astype(np.float64)) + 0.7 * laplacian(foreign.astype(np.float64))
    assert np.abs(laplacian(solved) - wanted)[inside].max() < 1e-4
    assert np.array_equal(solved[ball == 0], image[ball == 0])


def test_poisson_never_moves_the_border_of_the_array() -> None:
    rng = np.random.default_rng(3)
    image, foreign = rng.random((2, 8, 8, 8), dtype=np.float32)
    solved = blend_poisson(image, foreign, np.ones((8, 8, 8), np.float32))
    assert np.array_equal(solved[0], image[0]) and np.array_equal(solved[:, :, -1], image[:, :, -1])
    assert not np.array_equal(solved, image)
