"""The whole flow of the organisers on toy cases, with the shipped weights."""

import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from containers import HARD, ROOT, Image, names
from odd_inputs import body
from sklearn.metrics import average_precision_score

from mood_infer.challenge import Mode, Region

pytestmark = pytest.mark.container

SIDE_MM = 96
CASES = [f"case_{number:03d}.nii.gz" for number in range(1, 5)]


@dataclass(frozen=True)
class Evaluation:
    """What scripts/evaluate-image.sh left."""

    toy: Path
    out: Path
    printed: str

    def labels(self, region: Region) -> Path:
        return self.toy / region / "toy_label"


@pytest.fixture(scope="module")
def evaluation(image: Image, make_folder: Callable[[], Path]) -> Evaluation:
    toy, out = make_folder() / "toy", make_folder()
    for folder in (out / region / mode for region in Region for mode in (Mode.PIXEL, Mode.SAMPLE)):
        folder.mkdir(parents=True)
        folder.chmod(0o777)
        (folder / "left.nii.gz").write_text("of another image")
    scripts = ROOT / "scripts"
    subprocess.run([scripts / "make-toy.sh", "--crop", str(SIDE_MM), toy], check=True)
    line = [scripts / "evaluate-image.sh", "--image", image.name, "--toy", toy, "--out", out]
    ended = subprocess.run(line, stdout=subprocess.PIPE, text=True, check=True)
    print(ended.stdout)
    return Evaluation(toy, out, ended.stdout)


@pytest.mark.parametrize("region", Region)
def test_toy_cases_are_like_the_challenge(evaluation: Evaluation, region: Region) -> None:
    anomalous = []
    for name in CASES:
        scan = nib.load(evaluation.toy / region / "toy" / name)
        label = nib.load(evaluation.labels(region) / "pixel" / name)
        assert scan.get_data_dtype() == np.float32 and scan.shape == label.shape
        assert scan.get_fdata().min() >= 0 and scan.get_fdata().max() <= 1
        marked = int((evaluation.labels(region) / "sample" / f"{name}.txt").read_text())
        assert marked == int(label.get_fdata().any())
        anomalous.append(marked)
    assert sum(anomalous) == 2


@pytest.mark.parametrize("region", Region)
def test_pixel_outputs(evaluation: Evaluation, region: Region) -> None:
    folder = evaluation.out / region / Mode.PIXEL
    assert names(folder) == CASES
    for name in CASES:
        made, scan = nib.load(folder / name), nib.load(evaluation.toy / region / "toy" / name)
        scores = np.asarray(made.dataobj)
        assert scores.shape == scan.shape and scores.dtype == np.float32
        assert scores.min() >= 0 and scores.max() <= 1  # false for NaN


@pytest.mark.parametrize("region", Region)
def test_sample_outputs(evaluation: Evaluation, region: Region) -> None:
    folder = evaluation.out / region / Mode.SAMPLE
    assert names(folder) == [f"{name}.txt" for name in CASES]
    assert all(0 <= float((folder / f"{name}.txt").read_text().splitlines()[0]) <= 1 for name in CASES)


@pytest.mark.parametrize("region", Region)
def test_pixel_score_is_scikit_learn_s(evaluation: Evaluation, region: Region) -> None:
    def joined(folder: Path) -> np.ndarray:
        return np.concatenate([nib.load(folder / name).get_fdata(dtype=np.float32).ravel() for name in CASES])

    scores = np.clip(joined(evaluation.out / region / Mode.PIXEL).astype(np.float16), 0, 1)
    labels = joined(evaluation.labels(region) / "pixel") == 1
    expected = average_precision_score(labels, scores)
    reported = json.loads((evaluation.out / f"{region}.json").read_text())["pixel_ap"]
    assert abs(reported - expected) < 1e-12
    assert f"{reported:.3f}" in evaluation.printed


@pytest.mark.parametrize("region", Region)
def test_sample_score_is_scikit_learn_s(evaluation: Evaluation, region: Region) -> None:
    folder = evaluation.out / region / Mode.SAMPLE
    scores = [float((folder / f"{name}.txt").read_text().splitlines()[0]) for name in CASES]
    labels = [int((evaluation.labels(region) / "sample" / f"{name}.txt").read_text()) for name in CASES]
    expected = average_precision_score(labels, scores)
    reported = json.loads((evaluation.out / f"{region}.json").read_text())["sample_ap"]
    assert abs(reported - expected) < 1e-12
    assert f"{reported:.3f}" in evaluation.printed


def test_no_warning_without_reason(evaluation: Evaluation) -> None:
    for region in Region:
        assert not json.loads((evaluation.out / f"{region}.json").read_text())["warnings"]


@pytest.mark.parametrize("region", Region)
def test_challenge_sized_volume_in_6_gb(
    image: Image, make_folder: Callable[[], Path], region: Region
) -> None:
    data, output = make_folder(), make_folder()
    volume = np.zeros((256, 256, 256), np.float32)
    volume[120:136, 120:136, 120:136] = body()[12:28, 10:26, 7:23]
    nib.save(nib.Nifti1Image(volume, np.eye(4)), data / "mood.nii.gz")
    ended = image.predict(data, output, region=region, options=HARD).wait()
    assert ended.code == 0, ended.err
    scores = np.asarray(nib.load(output / "mood.nii.gz").dataobj)
    assert scores.shape == volume.shape and scores.min() >= 0 and scores.max() <= 1
