"""Any scanner's units to [0,1], by a rule that is stored with the weights.

Scans already in [0,1], as the challenge hands them out, pass untouched (paper, section 3.1).
"""

from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from mood_infer.volume import Array3D


class MedianRule(BaseModel):
    """Raw MR: the median of the voxels above 0 goes to a fixed value, everything above 1 is cut off.

    The median, and not a high percentile, because a bright anomaly must not darken the rest.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: Literal["mr-median"] = "mr-median"
    median_to: float = Field(default=0.45, gt=0, lt=1)

    def apply(self, array: Array3D) -> Array3D:
        """(X, Y, Z) raw MR to [0,1]; all zeros where no voxel is above 0."""
        tissue = array[array > 0]
        if tissue.size == 0:
            return np.zeros_like(array)
        white = np.float32(min(float(np.median(tissue)) / self.median_to, float(np.finfo(np.float32).max)))
        return np.clip(array, 0, white) / white  # cut first: a product could overflow


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
        if self.value[0] < 0 or self.value[-1] > 1:
            raise ValueError("value must lie in [0,1]")
        return self

    def apply(self, array: Array3D) -> Array3D:
        """(X, Y, Z) HU to [0,1]; beyond the ends of the curve its end values hold."""
        return np.interp(array, self.hu, self.value).astype(np.float32)


class UnitRule(BaseModel):
    """Only [0,1] input is allowed: for weights trained on the challenge's own files."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: Literal["unit"] = "unit"

    def apply(self, array: Array3D) -> Array3D:
        """(X, Y, Z) clipped to [0,1]."""
        return np.clip(array, 0, 1)


IntensityRule = Annotated[MedianRule | CurveRule | UnitRule, Field(discriminator="name")]


def to_unit(array: Array3D, rule: MedianRule | CurveRule | UnitRule) -> Array3D:
    """Scale a scan to [0,1] by a rule; a scan whose values all lie in [0,1] is returned as it is.

    Args:
        array: (X, Y, Z) float32, finite.
        rule: the rule stored with the weights.

    Returns:
        (X, Y, Z) float32 in [0,1].
    """
    if array.min() >= 0 and array.max() <= 1:
        return array
    return rule.apply(array)
