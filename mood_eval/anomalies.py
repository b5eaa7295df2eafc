"""The validation anomalies: five types of FPI (Tan et al. 2020), two of them also with soft edges.

These are the types of the paper's table 1. Every type changes one sphere, cut to the body, and nothing
outside it; results are clipped to [0,1]. Sizes are shares of d, :attr:`mood_eval.sites.Scan.length`;
strengths are shares of I, the scan's value range.

Soft edges weight the change with a smoothed sphere. The smoothing works inwards: a ball of radius R - sigma
is smoothed by a Gaussian of sigma = 2 mm, and lowered and stretched so that its weight falls to exactly 0 at
R. So the label is the sphere of radius R here too: there is no change outside it, and no wide rim of hardly
changed voxels inside it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, special

from mood_eval.body import Mask3D
from mood_eval.sites import Scan, Site, Voxel, draw_sphere
from mood_infer.volume import Array3D

SOFT_SIGMA = 2.0  # mm
SMALL = (0.05, 0.10)  # radius of the two noise types, share of d
LARGE = (0.08, 0.13)  # radius of the other types


class Kind(StrEnum):
    """Types of the validation set (paper, table 1)."""

    UNIFORM = "uniform"
    NOISE = "noise"
    DEFORMATION = "deformation"
    SHIFT = "shift"
    REFLECTION = "reflection"
    UNIFORM_SMOOTH = "uniform_smooth"
    NOISE_SMOOTH = "noise_smooth"


@dataclass(frozen=True)
class Change:
    """What a rule does at a site.

    Attributes:
        values: new values over the site's box; only those inside the site count.
        sign: +1 or -1: brighter or darker, pushed out or pulled in; 0 where a type has no sign.
        detail: the other numbers that were drawn, for the index.
    """

    values: NDArray[np.floating]
    sign: int = 0
    detail: str = ""


@dataclass(frozen=True)
class Anomaly:
    """A scan with one anomaly.

    Attributes:
        image: (X, Y, Z) float32 in [0,1].
        label: (X, Y, Z) bool, where the anomaly is; ``image`` equals the scan everywhere else.
        kind: name of the type.
        centre: voxel of the scan.
        radius: in mm; of a slab, half its thickness.
        sign: see :class:`Change`.
        detail: see :class:`Change`.
    """

    image: Array3D
    label: Mask3D
    kind: str
    centre: Voxel
    radius: float
    sign: int
    detail: str


def make_anomaly(scan: Scan, kind: Kind, rng: np.random.Generator) -> Anomaly:
    """Put one anomaly of a given type into a scan; the same generator state gives the same anomaly.

    Raises:
        UserError: the scan has no body in its middle.
    """
    shares, rule = RULES[kind]
    site = draw_sphere(scan, shares, rng)
    return place(scan, kind, site, rule(scan, site, rng))


def place(scan: Scan, kind: str, site: Site, change: Change) -> Anomaly:
    """Write a change into a copy of the scan, inside the site only."""
    image, label = scan.array.copy(), np.zeros(scan.array.shape, bool)
    label[site.box] = site.inside
    image[label] = np.clip(change.values[site.inside], 0, 1)
    return Anomaly(image, label, str(kind), site.centre, site.radius, change.sign, change.detail)


def soft_weight(distance: NDArray[np.floating], radius: float) -> NDArray[np.floating]:
    """Weight of a change at given distances (mm) from the centre: 1 in the middle, 0 from ``radius`` on.

    The Gaussian-smoothed ball has a closed form, so the weight depends on no grid. In spheres too small for
    2 mm, sigma is a sixth of the radius.
    """
    sigma = min(SOFT_SIGMA, radius / 6)
    rim = _smoothed_ball(np.asarray([radius]), radius - sigma, sigma)
    return np.clip((_smoothed_ball(distance, radius - sigma, sigma) - rim) / (1 - rim), 0, 1)


def _smoothed_ball(distance: NDArray[np.floating], radius: float, sigma: float) -> NDArray[np.floating]:
    r = np.maximum(distance, 1e-6 * radius)  # the formula's limit at 0 is taken near it
    width = np.sqrt(2) * sigma
    inner, outer = (r - radius) / width, (r + radius) / width
    bulk = (special.erf(outer) - special.erf(inner)) / 2
    return bulk - sigma / (np.sqrt(2 * np.pi) * r) * (np.exp(-(inner**2)) - np.exp(-(outer**2)))


def _uniform(scan: Scan, site: Site, rng: np.random.Generator) -> Change:
    sign = draw_sign(rng)
    step = sign * rng.uniform(0.2, 0.3) * scan.value_range
    return Change(scan.array[site.box] + step, sign, f"step {step:.3f}")


def _noise(scan: Scan, site: Site, rng: np.random.Generator) -> Change:
    sign = draw_sign(rng)
    steps = sign * rng.uniform(0.05, 0.3, site.inside.shape) * scan.value_range
    return Change(scan.array[site.box] + steps, sign)


def _deformation(scan: Scan, site: Site, rng: np.random.Generator) -> Change:
    sign = draw_sign(rng)
    q = (site.distance / site.radius) ** 2
    # in voxels from the centre; the same factor along all axes, so the spacing drops out
    factor = q if sign > 0 else 2 - q
    at = [
        centre + offset / length * factor
        for centre, offset, length in zip(site.centre, site.offsets, scan.spacing, strict=True)
    ]
    return Change(ndimage.map_coordinates(scan.array, at, order=1, mode="nearest"), sign)


def _shift(scan: Scan, site: Site, rng: np.random.Generator) -> Change:
    sizes = [rng.uniform(0.02, 0.05) * scan.length / length for length in scan.spacing]
    steps = [draw_sign(rng) * max(1, round(size)) for size in sizes]
    source = [
        np.clip(np.arange(part.start, part.stop) - step, 0, n - 1)
        for part, step, n in zip(site.box, steps, scan.array.shape, strict=True)
    ]
    return Change(scan.array[np.ix_(*source)], 0, "shift " + " ".join(str(step) for step in steps))


def _reflection(scan: Scan, site: Site, rng: np.random.Generator) -> Change:
    return Change(np.flip(scan.array, scan.left_right)[site.box])


def _softened(rule: "Rule") -> "Rule":
    def apply(scan: Scan, site: Site, rng: np.random.Generator) -> Change:
        change = rule(scan, site, rng)
        old = scan.array[site.box]
        weight = soft_weight(site.distance, site.radius)
        return Change(old + weight * (change.values - old), change.sign, change.detail)

    return apply


def draw_sign(rng: np.random.Generator) -> int:
    """+1 or -1, each as often."""
    return 1 if rng.integers(2) else -1


Rule = Callable[[Scan, Site, np.random.Generator], Change]
RULES: dict[Kind, tuple[tuple[float, float], Rule]] = {
    Kind.UNIFORM: (SMALL, _uniform),
    Kind.NOISE: (SMALL, _noise),
    Kind.DEFORMATION: (LARGE, _deformation),
    Kind.SHIFT: (LARGE, _shift),
    Kind.REFLECTION: (LARGE, _reflection),
    Kind.UNIFORM_SMOOTH: (SMALL, _softened(_uniform)),
    Kind.NOISE_SMOOTH: (SMALL, _softened(_noise)),
}
