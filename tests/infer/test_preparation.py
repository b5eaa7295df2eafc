import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mood_infer.challenge import Region
from mood_infer.preparation import BLOCK, body_box

WHOLE = (slice(0, 80), slice(0, 72), slice(0, 65))


def scan(background: float = 0.0) -> np.ndarray:
    return np.full((80, 72, 65), background, np.float32)


@pytest.mark.parametrize("background", [0.0, 0.1])
@pytest.mark.parametrize("region", Region)
def test_the_box_is_that_of_the_body_and_a_margin(region: Region, background: float) -> None:
    image = scan(background)
    image[24:40, 20:52, 60:] = 0.5
    assert body_box(image, region, 0) == (slice(24, 40), slice(20, 52), slice(60, 65))
    assert body_box(image, region, 10) == (slice(14, 50), slice(10, 62), slice(50, 65))
    assert body_box(image, region, 100) == WHOLE


@given(st.tuples(st.integers(0, 79), st.integers(0, 71), st.integers(0, 64)), st.floats(0.01, 1))
@settings(deadline=None, max_examples=40)
def test_not_one_voxel_of_a_brain_is_left_out(place: tuple[int, int, int], value: float) -> None:
    image = scan()
    image[30:40, 30:40, 30:40] = 0.5
    image[place] = value
    box = body_box(image, Region.BRAIN, 0)
    inside = [side.start <= n < side.stop for side, n in zip(box, place, strict=True)]
    assert all(inside)
    assert all(side.start <= 30 and side.stop >= 40 for side in box)


def test_noisy_air_of_a_ct_is_no_body_and_skin_is() -> None:
    random = np.random.default_rng(0)
    image = np.abs(random.normal(0, 0.01, scan().shape)).astype(np.float32)  # 50 HU by the default curve
    for place in random.integers(0, 60, (50, 3)):  # salt
        image[tuple(place)] = 0.3
    image[20:60, 24:48, 12:40] = 0.2  # fat
    box = body_box(image, Region.ABDOM, 0)
    assert box == (slice(20, 60), slice(24, 48), slice(12, 40))
    image[10, 24:48, 12:40] = 0.25  # one layer of a table's shell: in doubt it belongs
    assert body_box(image, Region.ABDOM, 0)[0] == slice(8, 60)


@given(st.floats(0.02, 1))
@settings(deadline=None, max_examples=20)
def test_however_dark_a_body_is_it_stays(brightest: float) -> None:
    """A scan whose one bright thing, like metal, was scaled to 1 may have tissue of any darkness."""
    image = scan()
    image[20:60, 24:48, 12:40] = 0.25 * brightest
    image[30:34, 30:34, 20:24] = 1
    box = body_box(image, Region.ABDOM, 0)
    assert box[0].start <= 20 and box[0].stop >= 60


@pytest.mark.parametrize("region", Region)
@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("shape", [(80, 72, 65), (1, 1, 1), (9, 1, 30)])
def test_a_scan_of_one_value_is_all_box(shape: tuple[int, int, int], value: float, region: Region) -> None:
    box = body_box(np.full(shape, value, np.float32), region, 5)
    assert box == tuple(slice(0, n) for n in shape)


def test_one_bright_voxel_at_the_very_end() -> None:
    image = scan()
    image[-1, -1, -1] = 1
    box = body_box(image, Region.BRAIN, 0)
    assert [side.stop for side in box] == [80, 72, 65]
    assert all(side.stop - side.start <= BLOCK for side in box)
