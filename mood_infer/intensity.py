"""Any scanner's units to [0,1], by a rule that is stored with the weights.

Scans already in [0,1], as the challenge hands them out, pass untouched (paper, section 3.1).
"""

import math
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from mood_infer.volume import Array3D

DARKEST_TISSUE = 1e-3
HU_LIKE = -100.0  # below this lies the air of a CT; of MR at most what a spline adds beside an edge
MOST_HU = 2**15  # what files of CT can hold
FEW = 0.05  # share of the voxels that may lie where they should not
FILLED = 0.95  # share of the voxels above 0 that no stripped head reaches, however closely it is cut
AIR_BELOW = -200.0  # HU: lungs, gas in bowels and what is around a body
OVERSHOOT = 0.05  # by which a scan in [0,1] may leave it


class QuartileRule(BaseModel):
    """Raw MR: median and interquartile distance of the voxels above 0 become fixed; the rest is cut to [0,1].

    The median and the distance between the outer quartiles, and no high percentile, because a bright anomaly
    must not darken the rest. The distance, because scanners differ in contrast as much as in scale. Tissue
    stays above 0, which is left to the background.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: Literal["mr-quartiles"] = "mr-quartiles"
    median_to: float = Field(default=0.45, gt=0, lt=1)
    spread_to: float = Field(default=0.285, gt=0, lt=1)

    def apply(self, array: Array3D) -> Array3D:
        """(X, Y, Z) raw MR to [0,1]; all zeros where no voxel is above 0."""
        tissue = array[array > 0]
        if tissue.size == 0:
            return np.zeros_like(array)
        median, scale = self.median_and_scale(tissue)
        # in place: a scan may have 10^8 voxels; a product that overflows is cut off all the same
        with np.errstate(over="ignore"):
            scaled = array - np.float32(median)
            scaled *= np.float32(scale)
        scaled += np.float32(self.median_to)
        np.clip(scaled, DARKEST_TISSUE, 1, out=scaled)
        scaled[array <= 0] = 0
        return scaled

    def doubts(self, array: Array3D) -> tuple[str, ...]:
        """Why a scan may be none that this rule is for, one sentence a reason."""
        if array.min() == array.max():
            return ()
        if may_be_ct(array):
            return ("much of it lies far below 0, as in CT; these weights know brain MR",)
        if (below := _share_below(array, 0)) > FEW:
            return (f"{below:.0%} of the voxels are below 0 and were taken for background, not for tissue",)
        if np.count_nonzero(array > 0) > FILLED * array.size:
            return ("hardly a voxel is 0; these weights know whole brains on a background of 0",)
        return ()

    def median_and_scale(self, tissue: NDArray[np.float32]) -> tuple[float, float]:
        """Median in raw units, and what a raw unit is in [0,1]; by the median where all tissue is alike."""
        low, median, high = (float(value) for value in np.percentile(tissue, (25, 50, 75)))
        smallest = float(np.finfo(np.float32).tiny)
        if high - low > smallest:
            return median, min(self.spread_to / (high - low), 1 / smallest)
        return median, min(self.median_to / median, 1 / smallest)


class CurveRule(BaseModel):
    """Hounsfield units: a rising curve of straight pieces, steep where soft tissues lie (20-100 HU)."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: Literal["hu-curve"] = "hu-curve"
    hu: tuple[float, ...] = (-1000, -200, -100, 200, 600, 2000)
    value: tuple[float, ...] = (0, 0.15, 0.25, 0.75, 0.9, 1)

    @model_validator(mode="after")
    def _check(self) -> "CurveRule":
        if len(self.hu) != len(self.value) or len(self.hu) < 2:
            raise ValueError("hu and value need the same number of points, at least two")
        if np.any(np.diff(self.hu) <= 0) or np.any(np.diff(self.value) < 0):
            raise ValueError("hu must rise and value must not fall")
        if self.hu[0] < -MOST_HU or self.hu[-1] > MOST_HU:
            raise ValueError(f"hu must lie within {MOST_HU} of 0, as all CT does")
        if self.value[0] < 0 or self.value[-1] > 1:
            raise ValueError("value must lie in [0,1]")
        return self

    def apply(self, array: Array3D) -> Array3D:
        """(X, Y, Z) HU to [0,1]; beyond the ends of the curve its end values hold."""
        inside = np.clip(array, self.hu[0], self.hu[-1])
        first, last = math.floor(self.hu[0]), math.ceil(self.hu[-1])
        # most CTs hold whole numbers: looked up they are as exact and seven times as fast
        table = self._at(np.arange(first, last + 1)).astype(np.float32)
        slowest = int(np.argmax(array.strides))
        for slab in np.moveaxis(inside, slowest, 0):  # not all at once: NumPy interpolates in float64
            places = slab.astype(np.int32)
            slab[:] = table[places - first] if np.array_equal(places, slab) else self._at(slab)
        return inside

    def _at(self, hu: NDArray[np.float32 | np.int64]) -> NDArray[np.float64]:
        return np.interp(hu, self.hu, self.value)

    def doubts(self, array: Array3D) -> tuple[str, ...]:
        """Why a scan may be no CT in Hounsfield units, which has air as well as tissue; not one in [0,1]."""
        low, high = float(array.min()), float(array.max())
        if is_unit(low, high) or low == high or (low < AIR_BELOW and high > 0):
            return ()
        return (f"values from {low:g} to {high:g} do not look like Hounsfield units",)


class UnitRule(BaseModel):
    """Only [0,1] input is allowed: for weights trained on the challenge's own files."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: Literal["unit"] = "unit"

    def apply(self, array: Array3D) -> Array3D:
        """(X, Y, Z) clipped to [0,1]."""
        return np.clip(array, 0, 1)

    def doubts(self, array: Array3D) -> tuple[str, ...]:
        """Why a scan may be none that this rule is for."""
        low, high = float(array.min()), float(array.max())
        if 0 <= low <= high <= 1:
            return ()
        return (f"values from {low:g} to {high:g} were cut to [0,1], the only range these weights know",)


IntensityRule = Annotated[QuartileRule | CurveRule | UnitRule, Field(discriminator="name")]


def may_be_ct(array: Array3D) -> bool:
    """Whether much of a scan is as dark as only fat and air in Hounsfield units are."""
    return _share_below(array, HU_LIKE) > FEW


def _share_below(array: Array3D, level: float) -> float:
    """Share of the voxels below a level of 0 or less, but for what a spline adds beside bright tissue."""
    if array.min() >= level:
        return 0.0  # as in most scans, whose tissue then need not be sorted
    tissue = array[array > 0]
    bright = float(np.percentile(tissue, 99)) if tissue.size else 0.0
    return float(np.mean(array < min(level, -OVERSHOOT * bright)))


def to_unit(array: Array3D, rule: IntensityRule) -> Array3D:
    """Scale a scan to [0,1] by a rule; a scan whose values all lie in [0,1] is returned as it is.

    So is one that leaves [0,1] by no more than a spline or a rounding does, but cut to it.

    Args:
        array: (X, Y, Z) float32, finite.
        rule: the rule stored with the weights.

    Returns:
        (X, Y, Z) float32 in [0,1].
    """
    low, high = float(array.min()), float(array.max())
    if low >= 0 and high <= 1:
        return array
    return np.clip(array, 0, 1) if is_unit(low, high) else rule.apply(array)


def is_unit(low: float, high: float) -> bool:
    """Whether a scan with these extreme values is one in [0,1], but for what a spline or a rounding adds."""
    return low >= -OVERSHOOT and high <= 1 + OVERSHOOT
