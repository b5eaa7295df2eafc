from itertools import pairwise, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.inferers import SlidingWindowInferer
from monai.inferers.utils import sliding_window_inference
from torch import Tensor

from mood_infer.windows import count_windows, cube_weights, line_weights, slide, window_starts

SIDES = st.integers(1, 40)
SHIFTS = st.floats(0, 1, exclude_max=True)
OVERLAPS = st.sampled_from([0.0, 0.25, 0.5, 0.75, 0.9])


def uneven(windows: Tensor) -> Tensor:
    """A score that depends on the place in the window, so that wrong weights or places show."""
    ramp = (
        torch.arange(windows[0].numel(), dtype=torch.float32).reshape(windows.shape[1:]) / windows[0].numel()
    )
    return torch.sin(3 * windows + ramp) + ramp.flip(1)


@given(st.integers(1, 300), st.integers(1, 64), st.floats(0, 0.95), SHIFTS)
def test_starts_cover_an_axis_in_even_steps(extra: int, window: int, overlap: float, shift: float) -> None:
    length = window + extra - 1
    starts = window_starts(length, window, overlap, shift)
    covered = {voxel for start in starts for voxel in range(start, start + window)}
    assert covered == set(range(length))
    assert starts == sorted(set(starts))
    step = max(1, round(window * (1 - overlap)))
    assert {b - a for a, b in pairwise(starts[1:-1])} <= {step}
    assert all(b - a <= step for a, b in pairwise(starts))


def test_shifts_move_the_inner_windows_only() -> None:
    assert window_starts(100, 32, 0.5) == [0, 16, 32, 48, 64, 68]
    assert window_starts(100, 32, 0.5, 0.25) == [0, 13, 29, 45, 61, 68]
    assert window_starts(100, 32, 0.0, 0.75) == [0, 11, 43, 68]
    assert window_starts(20, 32, 0.5, 0.25) == [0]


@given(st.tuples(SIDES, SIDES, SIDES), OVERLAPS, st.integers(1, 5), st.tuples(SHIFTS, SHIFTS, SHIFTS))
@settings(deadline=None, max_examples=40)
def test_identity_returns_the_volume(
    shape: tuple[int, int, int], overlap: float, batch: int, shift: tuple[float, float, float]
) -> None:
    volume = torch.rand(shape, generator=torch.Generator().manual_seed(1))
    result = slide(volume, 16, overlap, 0.125, lambda windows: windows, batch, shift=shift)
    assert result.shape == volume.shape
    torch.testing.assert_close(result, volume, atol=1e-5, rtol=0)


@pytest.mark.parametrize("overlap", [0.25, 0.5, 0.75])
@pytest.mark.parametrize("shape", [(16, 16, 16), (40, 33, 21), (5, 40, 16), (7, 9, 3)])
def test_equals_monai_with_the_same_weights(shape: tuple[int, int, int], overlap: float) -> None:
    volume = torch.rand(shape, generator=torch.Generator().manual_seed(2))
    # so broad that MONAI's floor of 1e-3 on the whole cube does not bite
    assert cube_weights(16, 0.25).min() > 1e-3
    inferer = SlidingWindowInferer(
        (16, 16, 16), sw_batch_size=3, overlap=overlap, mode="gaussian", sigma_scale=0.25
    )
    expected = inferer(volume[None, None], uneven)[0, 0]
    torch.testing.assert_close(slide(volume, 16, overlap, 0.25, uneven, 2), expected, atol=1e-5, rtol=0)


def test_equals_monai_at_the_default_sigma() -> None:
    """With the default sigma MONAI floors the cube, not the line; so it is given our cube."""
    volume = torch.rand((44, 24, 31), generator=torch.Generator().manual_seed(3))
    cube = cube_weights(16, 0.125)
    expected = sliding_window_inference(
        volume[None, None], (16, 16, 16), 4, uneven, overlap=0.5, roi_weight_map=cube[None, None]
    )[0, 0]
    torch.testing.assert_close(slide(volume, 16, 0.5, 0.125, uneven), expected, atol=1e-5, rtol=0)


def test_line_weights_are_a_gaussian_with_a_floor() -> None:
    line = line_weights(64, 0.125)
    assert line.max() == 1
    assert line.min() == pytest.approx(1e-3)
    assert torch.equal(line, line.flip(0))
    assert line[40] / line[32] == pytest.approx(
        float(torch.exp(torch.tensor(-(8.5**2 - 0.5**2) / 128))), rel=1e-5
    )
    assert line_weights(8, 1e-3).min() == pytest.approx(1e-3)


def test_constant_windows_are_scored_once_and_change_nothing() -> None:
    volume = torch.zeros(64, 48, 48)
    volume[20:30, 20:30, 20:30] = torch.rand(10, 10, 10)
    volume[48:] = 0.7
    scored: list[Tensor] = []

    def count(windows: Tensor) -> Tensor:
        scored.extend(windows)
        return uneven(windows)

    with_memo = slide(volume, 16, 0.5, 0.125, count, batch=3)
    constants = [window for window in scored if window.min() == window.max()]
    assert sorted(float(window.max()) for window in constants) == [0, pytest.approx(0.7)]
    noise = volume.clone()
    noise += 1e-7 * torch.rand(volume.shape)
    without = slide(noise, 16, 0.5, 0.125, uneven)
    torch.testing.assert_close(with_memo, without, atol=1e-5, rtol=0)


def test_batches_and_progress() -> None:
    volume = torch.rand((40, 24, 20), generator=torch.Generator().manual_seed(4))
    seen: list[tuple[int, int]] = []
    single = slide(volume, 16, 0.5, 0.125, uneven, 1, lambda done, count: seen.append((done, count)))
    torch.testing.assert_close(slide(volume, 16, 0.5, 0.125, uneven, 7), single, atol=1e-6, rtol=0)
    count = 4 * 2 * 2
    assert count_windows(volume.shape, 16, 0.5) == count
    assert seen == [(n, count) for n in range(1, count + 1)]


@pytest.mark.parametrize("shape", [(41, 33, 50), (70, 16, 9)])
def test_shifted_windows_equal_a_plain_loop(shape: tuple[int, int, int]) -> None:
    volume, shift = torch.rand(shape, generator=torch.Generator().manual_seed(5)), (0.3, 0.0, 0.8)
    before = max(0, 16 - shape[2]) // 2
    padded = torch.zeros(shape[0], shape[1], max(16, shape[2]))
    padded[:, :, before : before + shape[2]] = volume
    cube, total, weights = cube_weights(16, 0.125), torch.zeros_like(padded), torch.zeros_like(padded)
    corners = list(product(*(window_starts(n, 16, 0.25, s) for n, s in zip(shape, shift, strict=True))))
    for x, y, z in corners:
        place = (slice(x, x + 16), slice(y, y + 16), slice(z, z + 16))
        total[place] += cube * uneven(padded[place][None, None])[0, 0]
        weights[place] += cube
    expected = (total / weights)[:, :, before : before + shape[2]]
    torch.testing.assert_close(
        slide(volume, 16, 0.25, 0.125, uneven, shift=shift), expected, atol=1e-5, rtol=0
    )
    assert count_windows(shape, 16, 0.25) == len(corners)
