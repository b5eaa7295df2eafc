from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.inferers import SlidingWindowInferer
from torch import nn

from mood_infer.challenge import Region
from mood_infer.errors import UserError, WeightsError
from mood_infer.predictor import Predictor
from mood_infer.volume import Volume, read_volume
from mood_infer.weights import load_member, read_manifest


@pytest.fixture
def scan(make_scan: Callable[..., Path], tmp_path: Path) -> Volume:
    return read_volume(make_scan(tmp_path / "scan.nii.gz", (50, 36, 28)))


def test_equals_a_plain_ensemble_in_float32(
    make_weights: Callable[..., Path], scan: Volume, tmp_path: Path
) -> None:
    folder = make_weights(
        tmp_path / "weights", sigma=0.25
    )  # as broad as MONAI's floor needs to be without effect
    predictor = Predictor.load(Region.BRAIN, folder, "cpu", precision="float32")
    assert predictor.precision == "float32"
    result = predictor.predict(scan)
    manifest = read_manifest(folder / "brain")
    inferer = SlidingWindowInferer((32, 32, 32), overlap=0.5, mode="gaussian", sigma_scale=0.25)
    volume = torch.from_numpy(scan.array)[None, None]
    maps = []
    with torch.no_grad():
        for member in manifest.members:
            network = load_member(folder / "brain", manifest, member)
            maps.append(inferer(volume, nn.Sequential(network, nn.Sigmoid()))[0, 0])
    assert float((maps[0] - maps[1]).abs().max()) > 0.1  # the members differ
    expected = torch.stack(maps).mean(dim=0).numpy()
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(result.working, expected, atol=1e-5)
    assert np.array_equal(result.scores, result.working)  # the scan lies on the working grid
    assert result.members == ("member0.safetensors", "member1.safetensors")
    assert result.seconds > 0
    top = np.sort(expected, axis=None)[-100:].mean()
    assert result.sample_score == pytest.approx(top, abs=1e-5)


def test_reduced_precision_is_close(weights: Path, scan: Volume) -> None:
    exact = Predictor.load(Region.BRAIN, weights, "cpu", precision="float32").predict(scan).working
    default = Predictor.load(Region.BRAIN, weights, "cpu").predict(scan).working
    assert np.abs(default - exact).mean() < 0.01
    assert np.corrcoef(default.ravel(), exact.ravel())[0, 1] > 0.99
    assert len(np.unique(default)) > 0.5 * default[scan.array > 0].size  # no ties from 8-bit logits


def test_a_subset_of_members(weights: Path, scan: Volume) -> None:
    load = Predictor.load
    both = load(Region.BRAIN, weights, "cpu", precision="float32")
    singles = [
        load(Region.BRAIN, weights, "cpu", [f"member{n}.safetensors"], precision="float32") for n in range(2)
    ]
    assert len({predictor.digest for predictor in (both, *singles)}) == 3
    mean = np.mean([predictor.predict(scan).working for predictor in singles], axis=0)
    np.testing.assert_allclose(both.predict(scan).working, mean, atol=1e-5)
    with pytest.raises(WeightsError, match="memberX"):
        load(Region.BRAIN, weights, "cpu", ["memberX"])
    with pytest.raises(WeightsError, match="no members"):
        load(Region.BRAIN, weights, "cpu", [])


def test_weights_of_the_other_region_are_refused(weights: Path) -> None:
    with pytest.raises(WeightsError, match="weights for abdom; give those for brain"):
        Predictor.load(Region.BRAIN, weights / "abdom")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there(weights: Path) -> None:
    with pytest.raises(UserError, match="no usable GPU"):
        Predictor.load(Region.BRAIN, weights, "cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_a_gpu_gives_the_same_map(weights: Path, scan: Volume) -> None:
    exact = Predictor.load(Region.BRAIN, weights, "cpu", precision="float32").predict(scan).working
    single = Predictor.load(Region.BRAIN, weights, "cuda", precision="float32").predict(scan).working
    half = Predictor.load(Region.BRAIN, weights, "cuda").predict(scan).working
    np.testing.assert_allclose(single, exact, atol=5e-3)  # convolutions may run in TF32
    np.testing.assert_allclose(half, exact, atol=2e-2)


def test_an_overflow_in_16_bits_is_mended(weights: Path, scan: Volume) -> None:
    """Weights so large that float16 would overflow must give the float32 result."""
    predictor = Predictor.load(Region.BRAIN, weights, "cpu")
    exact = Predictor.load(Region.BRAIN, weights, "cpu", precision="float32")
    for owner in (predictor, exact):
        owner._reduced = torch.float16 if owner is predictor else None
        for network in owner._networks:
            network.input_block.conv1.conv.weight.mul_(1e6)
    np.testing.assert_allclose(predictor.predict(scan).working, exact.predict(scan).working, atol=1e-5)


def test_the_map_lies_where_the_scan_lies(weights: Path, tmp_path: Path) -> None:
    """The same anatomy stored another way gives the same scores at the same places."""
    random = np.random.default_rng(0)
    array = random.uniform(0.2, 0.8, (36, 40, 33)).astype(np.float32)
    image = nib.Nifti1Image(array, np.eye(4))
    turned = image.as_reoriented(np.array([[2, 1], [0, -1], [1, -1]]))
    maps = []
    for name, stored in (("plain", image), ("turned", turned)):
        nib.save(stored, tmp_path / f"{name}.nii")
        predictor = Predictor.load(Region.ABDOM, weights, "cpu", precision="float32")
        result = predictor.predict(read_volume(tmp_path / f"{name}.nii"))
        assert result.scores.shape == stored.shape
        maps.append(nib.Nifti1Image(result.scores, stored.affine))
    back = nib.as_closest_canonical(maps[1])
    np.testing.assert_allclose(back.affine, np.eye(4), atol=1e-6)
    np.testing.assert_allclose(np.asarray(back.dataobj), np.asarray(maps[0].dataobj), atol=1e-6)


def test_doubts_are_told(weights: Path, tmp_path: Path) -> None:
    predictor = Predictor.load(Region.BRAIN, weights, "cpu")
    cases = {
        "same value": (np.full((40, 40, 40), 0.3), 1.0, "all voxels have the value 0.3"),
        "thick": (np.random.default_rng(0).random((40, 40, 9)), (1.0, 1.0, 5.0), "5 mm long"),
        "tiny": (np.random.default_rng(0).random((30, 30, 30)), 0.1, "the spacing may be wrong"),
    }
    for name, (array, spacing, words) in cases.items():
        affine = np.diag([*np.broadcast_to(spacing, 3), 1])
        nib.save(nib.Nifti1Image(array.astype(np.float32), affine), tmp_path / f"{name}.nii")
        result = predictor.predict(read_volume(tmp_path / f"{name}.nii"))
        assert len(result.warnings) == 1 and words in result.warnings[0]
        assert np.isfinite(result.scores).all() and result.scores.shape == array.shape


def test_a_working_grid_beyond_reason_is_refused_at_once(weights: Path, tmp_path: Path) -> None:
    nib.save(
        nib.Nifti1Image(np.ones((60, 60, 60), np.float32), np.diag([900, 900, 900, 1])), tmp_path / "s.nii"
    )
    with pytest.raises(UserError, match="spacing"):
        Predictor.load(Region.BRAIN, weights, "cpu").predict(read_volume(tmp_path / "s.nii"))
