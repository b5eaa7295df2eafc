"""Make the sample scans: make_samples.py BRAIN ABDOM OUT.

BRAIN and ABDOM are normal scans whose licences allow passing them on. Each is copied as it is, and once more
with one planted anomaly in its own units, beside the anomaly's label. Outside the label not a voxel differs.
"""

import shutil
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from mood_eval.anomalies import Kind
from mood_eval.validation_set import Case, Recipe, make_cases
from mood_infer.challenge import Region
from mood_infer.intensity import CurveRule, QuartileRule
from mood_infer.volume import Array3D, read_volume

PLANTED = {Region.BRAIN: (Kind.SHIFT, 7), Region.ABDOM: (Kind.NOISE, 3)}  # type and seed


def raw_units(unit: Array3D, region: Region, raw: Array3D) -> NDArray[np.float64]:
    """Intensities in [0,1] back to the scan's own units."""
    if region is Region.BRAIN:
        rule = QuartileRule()
        median, scale = rule.median_and_scale(raw[raw > 0])
        return np.where(unit > 0, median + (unit.astype(np.float64) - rule.median_to) / scale, 0)
    curve = CurveRule()
    return np.interp(unit, curve.value, curve.hu)


def plant(source: Path, region: Region, out: Path) -> None:
    """Write the scan, the scan with an anomaly, and the label."""
    folder, labels = out / region, out / "labels" / region
    folder.mkdir(parents=True, exist_ok=True)
    labels.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, folder / source.name)
    raw, stored = read_volume(source).array, nib.load(source)
    kind, seed = PLANTED[region]
    name = source.name.replace(".nii", "-planted.nii")
    case = Case(name=name, kind=kind, family="seen", source=source.name, number=1)
    made = next(make_cases(source, [case], Recipe(region, seed, {kind: 1})))
    changed = np.where(made.label, raw_units(made.image.array, region, raw), raw)
    planted = np.rint(changed).astype(stored.get_data_dtype())
    nib.save(nib.Nifti1Image(planted, stored.affine, stored.header), folder / name)
    nib.save(nib.Nifti1Image(made.label.astype(np.uint8), stored.affine), labels / name)
    print(f"{name}: {kind} at voxel {made.case.centre_voxel}, radius {made.case.radius_mm:.1f} mm")


if __name__ == "__main__":
    brain, abdom, target = (Path(argument) for argument in sys.argv[1:4])
    plant(brain, Region.BRAIN, target)
    plant(abdom, Region.ABDOM, target)
