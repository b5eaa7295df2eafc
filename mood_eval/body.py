"""Which voxels of a scan are the patient: anomalies are only ever put there."""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from mood_infer.challenge import Region
from mood_infer.volume import Array3D

Mask3D = NDArray[np.bool_]

AIR_BELOW = 0.094  # in [0,1]: -500 HU by the default curve, half way between air and water
BRIDGE = 5.0  # mm; thinner contacts between the body and the table are cut


def body_mask(array: Array3D, region: Region, spacing: tuple[float, float, float], axial: int = 2) -> Mask3D:
    """The patient's voxels: one connected piece, its holes filled.

    In the brain everything above 0 is tissue. In the abdomen everything denser than -500 HU is, contacts
    with the table thinner than 5 mm are cut, and holes are filled slice by slice, so that lungs and bowel gas
    belong to the body.

    Args:
        array: (X, Y, Z) float32 in [0,1].
        region: brain or abdom.
        spacing: of the voxels, in mm.
        axial: the axis across axial slices.

    Returns:
        (X, Y, Z) bool; all False where nothing is denser than air.
    """
    dense = array > (0 if region is Region.BRAIN else AIR_BELOW)
    box = ndimage.find_objects(dense.view(np.uint8))
    body = np.zeros(dense.shape, bool)
    if not box:
        return body
    inner = dense[box[0]]
    body[box[0]] = _brain(inner) if region is Region.BRAIN else _abdomen(inner, spacing, axial)
    return body


def _brain(dense: Mask3D) -> Mask3D:
    return ndimage.binary_fill_holes(_largest(dense))


def _abdomen(dense: Mask3D, spacing: tuple[float, float, float], axial: int) -> Mask3D:
    # the opening works in the axial plane alone: between thick slices nothing can be judged thin
    size = [2 * max(1, round(BRIDGE / 2 / length)) + 1 for length in spacing]
    size[axial] = 1
    core = _largest(ndimage.minimum_filter(dense, size))
    body = ndimage.maximum_filter(core, size) & dense
    planes = np.moveaxis(body, axial, 0)
    for plane in planes:
        plane[...] = ndimage.binary_fill_holes(plane)
    return body


def _largest(mask: Mask3D) -> Mask3D:
    labels, count = ndimage.label(mask)
    if count < 2:
        return mask
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return labels == sizes.argmax()
