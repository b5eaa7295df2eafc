"""A second family of anomalies, unlike any that training makes; kept apart in every report.

Faults of scanner, reconstruction and patient. As in :mod:`mood_eval.anomalies`, nothing changes outside the
label and values stay in [0,1]; artefacts that fill whole slices are kept to a slab of them.
"""

from collections.abc import Callable
from dataclasses import replace
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from mood_eval.anomalies import LARGE, Anomaly, Change, Rule, draw_sign, place
from mood_eval.sites import Scan, Site, draw_centre, draw_sphere, slab
from mood_infer.challenge import Region

SLAB = (0.02, 0.05)  # half thickness of a slab of slices, share of d


class UnseenKind(StrEnum):
    """Types of the second family; spikes are for MR and streaks for CT."""

    BIAS = "bias"
    BLUR = "blur"
    SLICE_SHUFFLE = "slice_shuffle"
    MISSING = "missing"
    FOREIGN_OBJECT = "foreign_object"
    MIRRORED = "mirrored"
    GHOST = "ghost"
    SPIKE = "spike"
    STREAK = "streak"


def unseen_kinds(region: Region) -> list[UnseenKind]:
    """The types that a region's scanner can produce."""
    other = UnseenKind.STREAK if region is Region.BRAIN else UnseenKind.SPIKE
    return [kind for kind in UnseenKind if kind is not other]


def make_unseen(scan: Scan, kind: UnseenKind, rng: np.random.Generator) -> Anomaly:
    """Put one anomaly of a given type into a scan; the same generator state gives the same anomaly.

    Raises:
        UserError: the scan has no body in its middle.
    """
    return _MAKERS[kind](scan, kind, rng)


def _in_sphere(rule: Rule) -> "Maker":
    def make(scan: Scan, kind: UnseenKind, rng: np.random.Generator) -> Anomaly:
        site = draw_sphere(scan, LARGE, rng)
        return place(scan, kind, site, rule(scan, site, rng))

    return make


def _in_slab(rule: Rule) -> "Maker":
    def make(scan: Scan, kind: UnseenKind, rng: np.random.Generator) -> Anomaly:
        # thick enough for three slices at least
        half = max(float(rng.uniform(*SLAB)) * scan.length, 1.01 * scan.spacing[scan.axial])
        site = slab(scan, draw_centre(scan, rng), half, scan.axial)
        return place(scan, kind, site, rule(scan, site, rng))

    return make


def _bias(scan: Scan, site: Site, rng: np.random.Generator) -> Change:
    """A coil's gain, 40-70 % too high or low in the middle of the sphere and right at its edge."""
    sign = draw_sign(rng)
    gain = 1 + sign * rng.uniform(0.4, 0.7) * (1 - (site.distance / site.radius) ** 2)
    return Change(scan.array[site.box] * gain, sign)


def _blur(scan: Scan, site: Site, rng: np.random.Generator) -> Change:
    """Gaussian blur of 2 to 4 mm."""
    sigma = rng.uniform(2, 4)
    sigmas = [sigma / length for length in scan.spacing]
    reach = [int(np.ceil(4 * n)) + 1 for n in sigmas]  # the filter is cut at 4 sigma
    grown = zip(site.box, reach, strict=True)
    wide = tuple(slice(max(part.start - n, 0), part.stop + n) for part, n in grown)
    blurred = ndimage.gaussian_filter(scan.array[wide], sigmas, mode="nearest")
    x, y, z = (
        slice(part.start - outer.start, part.stop - outer.start)
        for part, outer in zip(site.box, wide, strict=True)
    )
    return Change(blurred[x, y, z], 0, f"sigma {sigma:.1f} mm")


def _slice_shuffle(scan: Scan, site: Site, rng: np.random.Generator) -> Change:
    """The sphere's slices along one axis in an order that leaves none in its place."""
    axis = int(rng.integers(3))
    count = site.inside.shape[axis]
    order = rng.permutation(count)
    # each slice takes its successor's in a random cycle through all of them
    source = np.empty(count, int)
    source[order] = np.roll(order, 1)
    return Change(np.take(scan.array[site.box], source, axis), 0, f"axis {axis}")


def _missing(scan: Scan, kind: UnseenKind, rng: np.random.Generator) -> Anomaly:
    """A bubble, or a slab of slices, without signal."""
    shape = "slab" if rng.integers(2) else "bubble"
    make = (_in_slab if shape == "slab" else _in_sphere)(
        lambda _, site, __: Change(np.zeros(site.inside.shape), 0, shape)
    )
    return make(scan, kind, rng)


def _foreign_object(scan: Scan, kind: UnseenKind, rng: np.random.Generator) -> Anomaly:
    """A rod of one bright value, a third as thick as long, at a random angle."""
    sphere = draw_sphere(scan, LARGE, rng)
    x, y, z = _unit_vector(rng)
    dx, dy, dz = sphere.offsets
    along = dx * x + dy * y + dz * z
    in_rod = sphere.distance**2 - along**2 < (sphere.radius / 3) ** 2
    rod = replace(sphere, inside=sphere.inside & in_rod)
    value = rng.uniform(0.9, 1.0) * scan.array.max()
    return place(scan, kind, rod, Change(np.full(rod.inside.shape, value), 1, f"rod of {value:.2f}"))


def _mirrored(scan: Scan, site: Site, rng: np.random.Generator) -> Change:
    """The sphere's content mirrored about its own middle along one axis."""
    axis = int(rng.integers(3))
    index = 2 * site.centre[axis] - np.arange(site.box[axis].start, site.box[axis].stop)
    wide = list(site.box)
    wide[axis] = slice(None)
    taken = np.take(scan.array[tuple(wide)], index, axis, mode="clip")
    return Change(taken, 0, f"axis {axis}")


def _ghost(scan: Scan, site: Site, rng: np.random.Generator) -> Change:
    """A weaker copy of the slices, 0.1 to 0.2 d away in the plane, over them."""
    planar = [axis for axis in range(3) if axis != scan.axial]
    axis = planar[int(rng.integers(2))]
    steps = [0, 0, 0]
    steps[axis] = draw_sign(rng) * max(1, round(rng.uniform(0.1, 0.2) * scan.length / scan.spacing[axis]))
    weight = rng.uniform(0.3, 0.5)
    slices = scan.array[site.box]
    ghost = np.roll(slices, steps, (0, 1, 2))
    detail = f"weight {weight:.3f}, {steps[axis]} voxels along axis {axis}"
    return Change((1 - weight) * slices + weight * ghost, 0, detail)


def _spike(scan: Scan, site: Site, rng: np.random.Generator) -> Change:
    """One stray point in k-space: stripes across the slices, 5 to 15 mm apart."""
    return Change(scan.array[site.box] + 0.15 * scan.value_range * _stripes(scan, site, rng))


def _stripes(scan: Scan, site: Site, rng: np.random.Generator) -> NDArray[np.floating]:
    u, v = (site.offsets[axis] for axis in range(3) if axis != scan.axial)
    angle, wavelength, phase = rng.uniform(0, np.pi), rng.uniform(5, 15), rng.uniform(0, 2 * np.pi)
    stripes = np.cos(2 * np.pi * (u * np.cos(angle) + v * np.sin(angle)) / wavelength + phase)
    return np.broadcast_to(stripes, site.inside.shape)


def _streak(scan: Scan, site: Site, rng: np.random.Generator) -> Change:
    """A metal core and bright and dark rays from it in the axial plane, fading towards the sphere's edge."""
    u, v = (site.offsets[axis] for axis in range(3) if axis != scan.axial)
    rays = np.cos(int(rng.integers(4, 9)) * np.arctan2(v, u) + rng.uniform(0, 2 * np.pi))
    fading = 1 - site.distance / site.radius
    values = scan.array[site.box] + 0.5 * scan.value_range * fading * rays
    return Change(np.where(site.distance < site.radius / 8, 1.0, values))


def _unit_vector(rng: np.random.Generator) -> tuple[float, float, float]:
    vector = rng.normal(size=3)
    x, y, z = vector / np.linalg.norm(vector)
    return float(x), float(y), float(z)


Maker = Callable[[Scan, UnseenKind, np.random.Generator], Anomaly]
_MAKERS: dict[UnseenKind, Maker] = {
    UnseenKind.BIAS: _in_sphere(_bias),
    UnseenKind.BLUR: _in_sphere(_blur),
    UnseenKind.SLICE_SHUFFLE: _in_sphere(_slice_shuffle),
    UnseenKind.MISSING: _missing,
    UnseenKind.FOREIGN_OBJECT: _foreign_object,
    UnseenKind.MIRRORED: _in_sphere(_mirrored),
    UnseenKind.GHOST: _in_slab(_ghost),
    UnseenKind.SPIKE: _in_slab(_spike),
    UnseenKind.STREAK: _in_sphere(_streak),
}
