import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mood_infer.scores import BLOCK, sample_score


@given(hnp.arrays(np.float32, st.tuples(*[st.integers(1, 9)] * 3), elements=st.floats(0, 1, width=32)))
def test_mean_of_the_100_highest(scores: np.ndarray) -> None:
    top = np.sort(scores.astype(np.float64), axis=None)[::-1][:100]
    assert sample_score(scores) == pytest.approx(top.mean(), abs=1e-9)


@pytest.mark.parametrize("levels", [3, 50, 10**6])
def test_the_highest_of_a_large_map_are_found_by_blocks(levels: int) -> None:
    """The highest may lie together in one block or in the rest behind the last one, and many are tied."""
    rng = np.random.default_rng(levels)
    scores = (rng.integers(0, levels, 300 * BLOCK + 777) / levels).astype(np.float32)
    for start, count in ((5 * BLOCK, 0), (5 * BLOCK, 90), (300 * BLOCK + 600, 150)):
        scores[start : start + count] = rng.random(count, dtype=np.float32)
        top = np.sort(scores.astype(np.float64))[::-1][:100]
        assert sample_score(scores.reshape(1, 1, -1)) == pytest.approx(top.mean(), abs=1e-12)


def test_the_101st_voxel_does_not_count() -> None:
    scores = np.zeros((20, 20, 20), np.float32)
    scores.ravel()[:100] = 0.8
    assert sample_score(scores) == pytest.approx(0.8)
    scores.ravel()[100] = 0.7
    assert sample_score(scores) == pytest.approx(0.8)
