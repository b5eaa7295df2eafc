import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from mood_infer.challenge import Mode, Region
from mood_infer.errors import ScanError
from mood_infer.grid import Grid
from mood_infer.intensity import CurveRule, IntensityRule, QuartileRule
from mood_infer.job import Job, State
from mood_infer.memory import (
    BASE_BYTES,
    FEATURE_BYTES,
    GB,
    PARAMETER_BYTES,
    SCAN_BYTES,
    WORKING_BYTES,
    check_fits,
    limit_gpu,
    needed_bytes,
)
from mood_infer.network import NetworkConfig, build_network, count_parameters
from mood_infer.predictor import Predictor
from mood_infer.volume import read_geometry
from mood_infer.weights import read_manifest

ROOT = Path(__file__).resolve().parents[2]

# The process tells its own peak: what its parent is told of it includes the parent's own, from before exec.
PRINT_PEAK = """
import atexit, re
from mood_infer.cli import main
status = lambda: open("/proc/self/status").read()
atexit.register(lambda: print(re.search(r"VmHWM:\\s*(\\d+)", status()).group(1)))
main()
"""


def write_scan(path: Path, shape: tuple[int, int, int], spacing: float, dtype: type) -> Path:
    """Noise in raw units, with thick slices or thin ones, as far as the scan goes in all but x."""
    array = np.zeros(shape, dtype)
    inner = np.s_[shape[0] // 4 : -shape[0] // 4]
    array[inner] = np.random.default_rng(0).integers(20, 130, array[inner].shape)
    nib.save(nib.Nifti1Image(array, np.diag([1, 1, spacing, 1])), path)
    return path


def test_needed_bytes_by_hand(weights: Path) -> None:
    manifest = read_manifest(weights / "brain").model_copy(update={"spacing": 2.0})
    grid = Grid((10, 20, 31), np.diag([2.0, 2.0, 1.0, 1.0]))
    # 18 x 38 x 30 mm between the outermost centres
    voxels = SCAN_BYTES * 10 * 20 * 31 + WORKING_BYTES * 10 * 20 * 16
    parameters = sum(one.numel() for one in build_network(manifest.network).parameters())
    ensemble = PARAMETER_BYTES * len(manifest.members) * parameters
    features = FEATURE_BYTES * 2 * manifest.window**3 * manifest.network.widths[0]  # two at once
    assert needed_bytes(grid, manifest) == BASE_BYTES + ensemble + features + voxels
    kept = manifest.model_copy(update={"spacing": 1.5, "upsample": False})
    # 2 x 2 mm stay, 30 mm of 1 mm become 20 of 1.5
    voxels = SCAN_BYTES * 10 * 20 * 31 + WORKING_BYTES * 10 * 20 * 21
    assert needed_bytes(grid, kept) == BASE_BYTES + ensemble + features + voxels


def test_the_reference_page_says_what_is_counted() -> None:
    page = (ROOT / "docs" / "container.md").read_text()
    said = re.search(r"in one process: ([\d.]+) GB \(brain\) or ([\d.]+) GB \(abdomen", page)
    grid, one = Grid((1, 1, 1), np.eye(4)), {}
    for region, words in zip((Region.BRAIN, Region.ABDOM), said.groups(), strict=True):
        manifest = read_manifest(ROOT / "weights" / region)
        assert f"{needed_bytes(grid, manifest) / GB:.1f}" == words
        one[region] = PARAMETER_BYTES * count_parameters(manifest.network) / 1e6
    assert f"({one[Region.BRAIN]:.0f} MB each for `compact`" in page
    paper = count_parameters(NetworkConfig(widths=(32, 64, 128, 256, 320, 320)))
    assert f"{round(PARAMETER_BYTES * paper / 1e6, -1):.0f} MB for\n`reference`" in page


def test_the_paper_s_network_is_counted() -> None:
    assert count_parameters(NetworkConfig(widths=(32, 64, 128, 256, 320, 320))) == 31_189_828


def test_the_geometry_is_that_of_the_header(tmp_path: Path) -> None:
    path = write_scan(tmp_path / "a.nii.gz", (9, 8, 7), 3.0, np.int16)
    shape, affine = read_geometry(path)
    assert shape == (9, 8, 7)
    np.testing.assert_array_equal(affine, np.diag([1, 1, 3.0, 1]))


def test_a_scan_too_large_is_refused_and_the_others_are_done(
    weights: Path, make_scan: Callable[..., Path], tmp_path: Path
) -> None:
    scans = [
        make_scan(tmp_path / name, shape) for name, shape in (("a.nii", (40,) * 3), ("b.nii", (20,) * 3))
    ]
    output = tmp_path / "out"
    output.mkdir()
    predictor = Predictor.load(Region.BRAIN, weights, "cpu")
    limit = needed_bytes(Grid(*read_geometry(scans[0])), predictor.manifest) - 1
    large, small = Job(predictor, Mode.SAMPLE, output, max_memory=limit).run(scans)
    assert large.state is State.FAILED and small.state is State.DONE
    assert large.error == (
        f"a.nii: it takes up to 0.5 GB of memory, and {limit / GB:g} GB are allowed; crop it or allow more."
    )
    check_fits(scans[0], predictor.manifest, limit + 1)
    with pytest.raises(ScanError, match="not a readable NIfTI file"):
        check_fits(write_text(tmp_path / "c.nii"), predictor.manifest, limit)


def write_text(path: Path) -> Path:
    path.write_text("no scan")
    return path


def test_with_a_limit_no_scan_waits_beside_another(
    weights: Path, make_scan: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading, scoring and writing come strictly in turn, and the maps are the same."""
    scans = [make_scan(tmp_path / f"{name}.nii", (24, 24, 24), seed) for seed, name in enumerate("abc")]
    predictor = Predictor.load(Region.BRAIN, weights, "cpu")
    order: list[str] = []
    maps = []
    for limit in (None, 10 * GB):
        output = tmp_path / f"out{limit}"
        output.mkdir()
        with monkeypatch.context() as patch:
            for stage in ("_read", "_score", "_write"):
                patch.setattr(Job, stage, _noted(order, stage, getattr(Job, stage)))
            order.clear()
            Job(predictor, Mode.PIXEL, output, max_memory=limit).run(scans)
        maps.append({path.name: path.read_bytes() for path in output.iterdir()})
    assert order == [f"{edge} {stage}" for stage in ("_read", "_score", "_write") for edge in "+-"] * 3
    assert maps[0] == maps[1] and len(maps[0]) == 3


def _noted(order: list[str], stage: str, work: Callable[..., None]) -> Callable[..., None]:
    def noted(*arguments: object) -> None:
        order.append(f"+ {stage}")
        work(*arguments)
        order.append(f"- {stage}")

    return noted


def test_the_gpu_gets_its_share_and_never_more_than_all(monkeypatch: pytest.MonkeyPatch) -> None:
    shares: list[float] = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (1, 8 * 10**9))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", shares.append)
    limit_gpu(2 * GB)
    limit_gpu(20 * GB)
    assert shares == [0.25, 1.0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "spacing", "dtype", "rule"),
    [
        ((300, 300, 300), 1.0, np.float64, QuartileRule()),
        ((300, 300, 300), 1.0, np.int16, CurveRule()),
        ((200, 200, 90), 5.0, np.int16, QuartileRule()),
    ],
    ids=["many voxels", "many voxels of a CT", "a large working grid"],
)
def test_the_peak_of_a_real_run_lies_below_what_is_said(
    shape: tuple[int, int, int],
    spacing: float,
    dtype: type,
    rule: IntensityRule,
    make_weights: Callable[..., Path],
    tmp_path: Path,
) -> None:
    """With maps that are refined, which takes memory too."""
    settings = {"overlap": 0.0, "smoothing": 5.0, "context": 20.0, "intensity": rule}
    weights = make_weights(tmp_path / "weights", count=1, **settings)
    path = write_scan(tmp_path / "a.nii.gz", shape, spacing, dtype)
    peak, needed = peak_and_need(path, Region.BRAIN, weights)
    assert 0.5 * needed < peak < needed


@pytest.mark.slow
@pytest.mark.parametrize("region", list(Region))
def test_the_shipped_networks_take_no_more_than_is_said(region: Region, tmp_path: Path) -> None:
    path = write_scan(tmp_path / "a.nii.gz", (110, 100, 64), 1.3, np.int16)
    peak, needed = peak_and_need(path, region, ROOT / "weights")
    assert 0.5 * needed < peak < needed


def peak_and_need(path: Path, region: Region, weights: Path) -> tuple[int, float]:
    """Bytes that a run takes at its peak, with hardly more allowed than it is said to take."""
    needed = needed_bytes(Grid(*read_geometry(path)), read_manifest(weights / region))
    words = [sys.executable, "-c", PRINT_PEAK, "predict", path, path.parent / "out", "--region", region]
    words += ["--mode", "pixel", "--weights", weights, "--max-memory", (needed + 1) / GB, "--device", "cpu"]
    ended = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=True)
    return int(ended.stdout) * 1024, needed
