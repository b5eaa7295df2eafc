"""A folder of odd but readable scans, and a folder of unreadable ones with a good scan among them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from containers import HARD, Ended, Image, names
from odd_inputs import READABLE, UNREADABLE, Odd, body, save

pytestmark = pytest.mark.container


@dataclass(frozen=True)
class Batch:
    """A folder that was scored in both modes."""

    data: Path
    maps: Path
    samples: Path
    pixel: Ended
    sample: Ended


def _score(image: Image, weights: Path, data: Path, make_folder: Callable[[], Path]) -> Batch:
    maps, samples = make_folder(), make_folder()
    pixel = image.predict(data, maps, weights=weights, mode="pixel")
    sample = image.predict(data, samples, weights=weights, mode="sample")
    return Batch(data, maps, samples, pixel.wait(), sample.wait())


@pytest.fixture(scope="module")
def readable(image: Image, weights: Path, make_folder: Callable[[], Path]) -> Batch:
    data = make_folder()
    for odd in READABLE:
        odd.make(data / odd.name)
    # neither of these is an input
    save(data / ".hidden.nii.gz", body())
    (data / "folder.nii.gz").mkdir()
    save(data / "folder.nii.gz" / "inner.nii.gz", body())
    return _score(image, weights, data, make_folder)


@pytest.fixture(scope="module")
def unreadable(image: Image, weights: Path, make_folder: Callable[[], Path]) -> Batch:
    data = make_folder()
    for odd in UNREADABLE:
        odd.make(data / odd.name)
    save(data / "good.nii.gz", body())
    return _score(image, weights, data, make_folder)


def _named(cases: tuple[Odd, ...]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("odd", cases, ids=[case.what for case in cases])


@_named(READABLE)
def test_readable_gets_a_valid_map(readable: Batch, odd: Odd) -> None:
    scan, made = nib.load(readable.data / odd.name), nib.load(readable.maps / odd.name)
    scores = np.asarray(made.dataobj)
    assert made.shape == scan.shape and scores.dtype.newbyteorder("=") == np.float32
    assert np.isfinite(scores).all() and scores.min() >= 0 and scores.max() <= 1
    for field in ("pixdim", "qform_code", "sform_code", "srow_x", "srow_y", "srow_z"):
        np.testing.assert_array_equal(made.header[field], scan.header[field])
    if odd.alike:
        plain = nib.load(readable.maps / READABLE[0].name).get_fdata()
        np.testing.assert_allclose(scores.reshape(plain.shape), plain, atol=2e-2)


@_named(READABLE)
def test_readable_gets_a_valid_sample_score(readable: Batch, odd: Odd) -> None:
    score = float((readable.samples / f"{odd.name}.txt").read_text().splitlines()[0])
    assert 0 <= score <= 1


@_named(READABLE)
def test_readable_is_reported(readable: Batch, odd: Odd) -> None:
    for text in (readable.pixel.err, readable.sample.err):
        lines = [line for line in text.splitlines() if line.startswith(f"{odd.name}: ")]
        assert lines[0].startswith(f"{odd.name}: done in ")
        if odd.message is None:
            assert not lines[1:]
        else:
            assert f"{odd.name}: warning: {odd.message}" in lines


def test_readable_folder_ends_with_0(readable: Batch) -> None:
    for ended in (readable.pixel, readable.sample):
        assert ended.code == 0
        assert ended.err.splitlines()[-1] == f"{len(READABLE)} done, 0 skipped, 0 failed"


def test_hidden_file_and_subfolder_are_no_inputs(readable: Batch) -> None:
    expected = {odd.name for odd in READABLE}
    assert set(names(readable.maps)) == expected
    assert set(names(readable.samples)) == {f"{name}.txt" for name in expected}


def test_readable_folder_is_done_only_once(image: Image, weights: Path, readable: Batch) -> None:
    before = {path: path.stat().st_mtime_ns for path in readable.maps.iterdir()}
    ended = image.predict(readable.data, readable.maps, weights=weights).wait()
    assert ended.err.splitlines()[-1] == f"0 done, {len(READABLE)} skipped, 0 failed"
    assert before == {path: path.stat().st_mtime_ns for path in readable.maps.iterdir()}


@_named(UNREADABLE)
def test_unreadable_gets_a_named_error_and_no_output(unreadable: Batch, odd: Odd) -> None:
    assert odd.message is not None
    for text in (unreadable.pixel.err, unreadable.sample.err):
        (line,) = (line for line in text.splitlines() if odd.name in line)
        assert line.startswith(f"failed: {odd.name}: ") and line.endswith(odd.message)
    assert not (unreadable.maps / odd.name).exists()
    assert not (unreadable.samples / f"{odd.name}.txt").exists()


def test_unreadable_folder_ends_with_1_and_the_good_scan_is_done(unreadable: Batch) -> None:
    for ended in (unreadable.pixel, unreadable.sample):
        assert ended.code == 1
        assert ended.err.splitlines()[-1] == f"1 done, 0 skipped, {len(UNREADABLE)} failed"
    assert names(unreadable.maps) == ["good.nii.gz"]
    assert names(unreadable.samples) == ["good.nii.gz.txt"]


def test_empty_folder(image: Image, make_folder: Callable[[], Path]) -> None:
    output = make_folder()
    ended = image.predict(make_folder(), output).wait()
    assert ended.code == 0 and not names(output)
    assert ended.err.strip() == "/mnt/data: no .nii or .nii.gz file in it; nothing to do."


def test_output_that_is_full(image: Image, weights: Path, make_folder: Callable[[], Path]) -> None:
    data = make_folder()
    for name in "abcd":
        save(data / f"{name}.nii.gz", body().astype(np.float32))
    script = "sh /workspace/run_pixel_brain.sh /mnt/data /mnt/pred; code=$?; ls -A /mnt/pred; exit $code"
    ended = image.run(
        *("sh", "-c", script),
        mounts=[f"{data}:/mnt/data:ro", f"{weights}:/weights:ro"],
        options=[*HARD, "--env=OMP_NUM_THREADS=1", "--tmpfs=/mnt/pred:size=256k,mode=777"],
    )
    written = ended.out.split()
    assert ended.code == 1 and 1 <= len(written) < 4
    for name in sorted({f"{letter}.nii.gz" for letter in "abcd"} - set(written)):
        line = f"failed: {name}: cannot be written (No space left on device); "
        assert line + "make room there or give another output folder." in ended.err.splitlines()
    assert set(written) <= {f"{letter}.nii.gz" for letter in "abcd"}  # nothing half-written among them


def test_weights_with_one_flipped_byte(
    image: Image, make_weights: Callable[..., Path], make_folder: Callable[[], Path]
) -> None:
    weights = make_weights(make_folder())
    member = weights / "brain" / "member1.safetensors"
    content = bytearray(member.read_bytes())
    content[len(content) // 2] ^= 1
    member.write_bytes(content)
    data, output = make_folder(), make_folder()
    (data / "unreadable.nii.gz").touch()  # had it been read, there would be a word of it
    ended = image.predict(data, output, weights=weights).wait()
    assert ended.code == 3 and not names(output)
    problem = "its sha256 is not the one in manifest.json; copy the weights again."
    assert ended.err.strip() == f"/weights/brain/member1.safetensors: {problem}"


def test_weights_that_may_not_be_read(
    image: Image, make_weights: Callable[..., Path], make_folder: Callable[[], Path]
) -> None:
    weights = make_weights(make_folder())
    weights.chmod(0o700)
    data = make_folder()
    save(data / "a.nii.gz", body())
    ended = image.predict(data, make_folder(), weights=weights).wait()
    assert ended.code == 3
    assert ended.err.strip() == "/weights/brain: Permission denied; let every user read it."
