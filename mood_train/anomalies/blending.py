"""Putting a foreign patch into an image: linearly (FPI) or by its gradients (PII)."""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.sparse.linalg import LinearOperator, cg

from mood_infer.volume import Array3D

_STAR = ndimage.generate_binary_structure(3, 1)
_LAPLACE = np.where(_STAR, 1.0, 0.0)
_LAPLACE[1, 1, 1] = -6.0
RELATIVE_TOLERANCE = 1e-4
MAX_ITERATIONS = 400


def blend_linear(image: Array3D, foreign: Array3D, alpha: Array3D) -> Array3D:
    """x' = x (1 - alpha) + x_fp alpha (paper, section 2.1); where alpha is 0 the image stays bit for bit.

    Args:
        image: (X, Y, Z) in [0,1].
        foreign: (X, Y, Z) in [0,1].
        alpha: (X, Y, Z) in [0,1].
    """
    return np.where(alpha > 0, image * (1 - alpha) + foreign * alpha, image)


def blend_poisson(image: Array3D, foreign: Array3D, alpha: Array3D) -> Array3D:
    """Solve for intensities whose gradients are the blend of both images' (Perez 2003; PII, Tan 2021).

    Where alpha > 0 the Laplacian of the result is (1 - alpha) lap(x) + alpha lap(x_fp), and next to it
    the result meets the image. Voxels on the border of the array are never changed: they are the boundary.

    Args:
        image: (X, Y, Z) in [0,1].
        foreign: (X, Y, Z) in [0,1].
        alpha: (X, Y, Z) in [0,1].

    Returns:
        (X, Y, Z) clipped to [0,1] where it was solved, the image bit for bit elsewhere.
    """
    found = ndimage.find_objects((without_border(alpha) > 0).view(np.uint8))
    if not found:
        return image
    # the equation reaches one voxel beyond the shape, which always lies within the array
    box = tuple(slice(part.start - 1, part.stop + 1) for part in found[0])
    result = image.copy()
    result[box] = _solve(image[box], foreign[box], alpha[box])
    return result


def _solve(image: Array3D, foreign: Array3D, alpha: Array3D) -> Array3D:
    inside = without_border(alpha) > 0
    blend = alpha.astype(np.float64)
    target = (1 - blend) * _laplacian(image) + blend * _laplacian(foreign)
    # unknown: the difference to the image, which is 0 on the boundary
    excess = (target - _laplacian(image))[inside]

    def negative_laplacian(values: NDArray[np.float64]) -> NDArray[np.float64]:
        full = np.zeros(image.shape)
        full[inside] = values.ravel()
        return -_laplacian(full)[inside]

    size = int(inside.sum())
    system = LinearOperator((size, size), matvec=negative_laplacian, dtype=np.float64)
    difference, _ = cg(system, -excess, rtol=RELATIVE_TOLERANCE, maxiter=MAX_ITERATIONS)
    result = image.copy()
    result[inside] = np.clip(image[inside] + difference, 0, 1)
    return result


def without_border(alpha: Array3D) -> Array3D:
    """A copy that is 0 on the six faces of the array, which gradients cannot reach."""
    inner = np.zeros_like(alpha)
    inner[1:-1, 1:-1, 1:-1] = alpha[1:-1, 1:-1, 1:-1]
    return inner


def _laplacian(array: NDArray[np.floating]) -> NDArray[np.float64]:
    return ndimage.correlate(array.astype(np.float64), _LAPLACE, mode="nearest")
