import gzip
import tempfile
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mood_infer.errors import ScanError
from mood_infer.volume import PARTIAL_PREFIX, read_volume, to_half, write_atomically, write_map

SHAPE = (7, 6, 5)
ARRAY = np.random.default_rng(0).uniform(0, 1, SHAPE).astype(np.float32)
OBLIQUE = np.array([[-0.9, 0.2, 0.1, 30], [0.3, 1.8, -0.4, -20], [0.05, 0.3, 2.9, 7], [0, 0, 0, 1]])


def plain(_: Path) -> nib.Nifti1Image:
    return nib.Nifti1Image(ARRAY, np.diag([1, 2, 3, 1]))


def oblique_about_z(degrees: float) -> np.ndarray:
    turn = np.radians(degrees)
    affine = np.diag([2.0, 1, 3, 1])
    affine[:2, :2] = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) * [2, 1]
    return affine


def two_frames(_: Path) -> nib.Nifti1Image:
    """qform and sform that differ, with codes and units of their own."""
    image = nib.Nifti1Image(ARRAY, None)
    image.set_sform(OBLIQUE, code=4)
    image.set_qform(np.diag([-2.0, 1, 3, 1]), code=1)
    image.header.set_xyzt_units("mm", "sec")
    return image


def only_qform(_: Path) -> nib.Nifti1Image:
    image = nib.Nifti1Image(ARRAY, None)
    image.set_sform(None, code=0)
    image.set_qform(np.diag([-2.0, 1, 3, 1]), code=2)
    return image


def no_frame(_: Path) -> nib.Nifti1Image:
    image = nib.Nifti1Image(ARRAY, None)
    image.header["pixdim"][1:4] = (0.5, 0.6, 0.7)
    return image


def big_endian(_: Path) -> nib.Nifti1Image:
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(np.float32)
    return nib.Nifti1Image(ARRAY, OBLIQUE, header)


def scaled_integers(_: Path) -> nib.Nifti1Image:
    header = nib.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_slope_inter(0.5, -1024)
    image = nib.Nifti1Image(ARRAY * 4000 - 1024, OBLIQUE, header)
    image.header.set_slope_inter(0.5, -1024)
    return image


def second_version(_: Path) -> nib.Nifti2Image:
    return nib.Nifti2Image(ARRAY, OBLIQUE)


def four_axes(_: Path) -> nib.Nifti1Image:
    return nib.Nifti1Image(ARRAY[..., None], OBLIQUE)


def extended(_: Path) -> nib.Nifti1Image:
    image = nib.Nifti1Image(ARRAY, OBLIQUE)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"kept as it is" * 30))
    return image


GOOD = [
    plain,
    two_frames,
    only_qform,
    no_frame,
    big_endian,
    scaled_integers,
    second_version,
    four_axes,
    extended,
]


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("make", GOOD, ids=lambda make: make.__name__)
def test_a_map_has_the_geometry_of_its_scan(
    make: Callable[[Path], nib.Nifti1Image], suffix: str, tmp_path: Path
) -> None:
    scan = tmp_path / f"scan{suffix}"
    nib.save(make(tmp_path), scan)
    volume = read_volume(scan)
    stored = nib.load(scan)
    disagree = make is two_frames  # on the spacing
    assert len(volume.warnings) == disagree
    np.testing.assert_array_equal(volume.array, stored.get_fdata(dtype=np.float32).reshape(SHAPE))
    scores = np.random.default_rng(1).random(SHAPE, dtype=np.float32)
    write_map(tmp_path / f"map{suffix}", scores, volume.header, "made by a test")
    result = nib.load(tmp_path / f"map{suffix}")
    assert type(result) is type(stored)
    assert result.shape == stored.shape
    assert result.header.endianness == stored.header.endianness
    assert result.get_data_dtype().newbyteorder("=") == np.float32
    np.testing.assert_array_equal(np.asarray(result.dataobj).reshape(SHAPE), scores.astype(np.float16))
    np.testing.assert_array_equal(result.affine, stored.affine)
    for field in ("qform_code", "sform_code", "xyzt_units", "pixdim", "srow_x", "quatern_b", "qoffset_x"):
        np.testing.assert_array_equal(result.header[field], stored.header[field], err_msg=field)
    assert [e.get_content() for e in result.header.extensions] == [
        e.get_content() for e in stored.header.extensions
    ]
    assert result.header["descrip"].item() == b"made by a test"


def broken_gzip(path: Path) -> None:
    nib.save(plain(path), path)
    path.write_bytes(path.read_bytes()[:-200])


def flipped_gzip(path: Path) -> None:
    nib.save(plain(path), path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def cut_inside(path: Path) -> None:
    nib.save(plain(path), path)
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-100]))


def text(path: Path) -> None:
    path.write_text("this is no scan\n" * 50)


def empty(path: Path) -> None:
    path.touch()


def header_only(path: Path) -> None:
    path.write_bytes(gzip.compress(plain(path).header.binaryblock[:200]))


def folder(path: Path) -> None:
    path.mkdir()


def flat(path: Path) -> None:
    nib.save(nib.Nifti1Image(ARRAY[0], np.eye(4)), path)


def movie(path: Path) -> None:
    nib.save(nib.Nifti1Image(np.stack([ARRAY] * 2, -1), np.eye(4)), path)


def colour(path: Path) -> None:
    kind = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(np.zeros(SHAPE, kind), np.eye(4)), path)


def complex_numbers(path: Path) -> None:
    nib.save(nib.Nifti1Image(ARRAY.astype(np.complex64), np.eye(4)), path)


def no_voxels(path: Path) -> None:
    nib.save(nib.Nifti1Image(np.zeros((4, 0, 4), np.float32), np.eye(4)), path)


def missing(_: Path) -> None:
    pass


BAD = [
    broken_gzip,
    flipped_gzip,
    cut_inside,
    text,
    empty,
    header_only,
    folder,
    flat,
    movie,
    colour,
    complex_numbers,
    no_voxels,
    missing,
]


@pytest.mark.parametrize("spoil", BAD, ids=lambda spoil: spoil.__name__)
def test_what_is_no_scan_is_refused_by_name(spoil: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "case_7.nii.gz"
    spoil(path)
    with pytest.raises(ScanError, match=r"^case_7\.nii\.gz: .+; .+\.$"):
        read_volume(path)


@pytest.mark.parametrize("back", range(1, 9))
def test_damage_is_found_to_the_last_byte(back: int, tmp_path: Path) -> None:
    """The last eight bytes of a .gz file are its checksum and its length."""
    path = tmp_path / "scan.nii.gz"
    nib.save(plain(path), path)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[-back] ^= 0x01
    for content in (bytes(flipped), whole[:-back]):
        path.write_bytes(content)
        with pytest.raises(ScanError, match="the voxel data is damaged or cut short; copy the file again"):
            read_volume(path)


def test_what_was_read_does_not_follow_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.nii"
    array = np.random.default_rng(0).random((20, 20, 20)).astype(np.float32)
    nib.save(nib.Nifti1Image(array, np.eye(4)), path)
    volume = read_volume(path)
    size = path.stat().st_size
    with path.open("r+b") as stream:  # in place, as a copying program might
        stream.write(bytes(size))
    np.testing.assert_array_equal(volume.array, array)


def test_any_readers_map_and_any_writers_scan(tmp_path: Path) -> None:
    """Python's own gzip reads what is written here, and what it wrote, at any level, is read here."""
    nib.save(plain(tmp_path), tmp_path / "scan.nii")
    plain_bytes = (tmp_path / "scan.nii").read_bytes()
    for level in (0, 1, 6, 9):
        (tmp_path / "scan.nii.gz").write_bytes(gzip.compress(plain_bytes, level))
        np.testing.assert_array_equal(read_volume(tmp_path / "scan.nii.gz").array, ARRAY)
    header = read_volume(tmp_path / "scan.nii").header
    for suffix in (".nii", ".nii.gz"):
        write_map(tmp_path / f"map{suffix}", ARRAY, header)
    packed = (tmp_path / "map.nii.gz").read_bytes()
    assert gzip.decompress(packed) == (tmp_path / "map.nii").read_bytes()
    assert packed[3] == 0 and packed[4:8] == bytes(4)  # neither a name nor a time inside


@given(hnp.arrays(np.float32, (2, 3, 4), elements=st.floats(0, 1, width=32)))
def test_rounding_a_map_loses_nothing_that_is_scored(scores: np.ndarray) -> None:
    """The challenge's scorer casts maps to float16: it finds the very same bits."""
    with tempfile.TemporaryDirectory() as folder:
        nib.save(nib.Nifti1Image(scores, np.eye(4)), scan := Path(folder) / "scan.nii")
        write_map(Path(folder) / "map.nii.gz", scores, read_volume(scan).header)
        found = nib.load(Path(folder) / "map.nii.gz").get_fdata(dtype=np.float32)
    assert found.min() >= 0 and found.max() <= 1
    assert found.astype(np.float16).tobytes() == scores.astype(np.float16).tobytes()
    assert np.abs(found - scores).max() <= 2**-12


def test_scores_are_rounded_as_numpy_rounds_them() -> None:
    codes = np.arange(0x3C01, dtype=np.uint16).view(np.float16).astype(np.float32)
    middles = (codes[1:] + codes[:-1]) / 2  # ties, to the even code
    beside = [np.nextafter(middles, np.float32(side)) for side in (0, 1)]
    scores = np.concatenate([np.array([-0.0, 1e-45, 65520, np.inf], np.float32), codes, middles, *beside])
    scores = scores[: scores.size // 6 * 6].reshape(2, 3, -1)
    locked = scores.copy()
    locked.flags.writeable = False
    views = [scores, scores.T, np.asfortranarray(scores), scores[:, ::-1], scores[..., ::2], locked]
    for view in [*views, scores.astype(np.float64) + 1e-12]:
        half = to_half(view)
        assert half.dtype == np.float16
        assert np.array_equal(half.view(np.uint16), view.astype(np.float16).view(np.uint16))


def test_other_formats_are_refused_by_name(tmp_path: Path) -> None:
    nib.save(nib.MGHImage(ARRAY, np.eye(4)), tmp_path / "scan.mgz")
    with pytest.raises(ScanError, match="MGHImage"):
        read_volume(tmp_path / "scan.mgz")


def test_voxels_that_are_not_finite_are_mended(tmp_path: Path) -> None:
    array = ARRAY - 3
    array[0, 0, :4] = (np.nan, np.inf, -np.inf, np.nan)
    nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / "scan.nii")
    volume = read_volume(tmp_path / "scan.nii")
    lowest = array[np.isfinite(array)].min()
    np.testing.assert_array_equal(volume.array, np.where(np.isfinite(array), array, lowest))
    assert len(volume.warnings) == 1 and volume.warnings[0].startswith("4 voxels")


def test_a_background_of_nan_is_no_tissue(tmp_path: Path) -> None:
    array = ARRAY + 5
    array[:, :4] = np.nan
    nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / "scan.nii")
    assert np.array_equal(read_volume(tmp_path / "scan.nii").array, np.nan_to_num(array, nan=0))


def test_nothing_finite_becomes_zero(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(np.full(SHAPE, np.nan, np.float32), np.eye(4)), tmp_path / "scan.nii")
    volume = read_volume(tmp_path / "scan.nii")
    assert not volume.array.any() and len(volume.warnings) == 1


def _with_bytes(path: Path, offset: int, values: np.ndarray) -> None:
    content = bytearray(path.read_bytes())
    content[offset : offset + values.nbytes] = values.tobytes()
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("srow", "pixdim", "spacing"),
    [
        (np.zeros((3, 4)), (2, 0, 3), (2, 1, 3)),
        (np.diag([1.0, 1, 1])[:, [0, 1, 1]] @ np.eye(3, 4), (2, 2, 2), (2, 2, 2)),
        (np.full((3, 4), np.nan), (0, 0, 0), (1, 1, 1)),
        (np.full((3, 4), np.nan), (np.nan, 4, np.inf), (1, 4, 1)),
    ],
)
def test_an_unusable_affine_is_replaced_but_given_back(
    srow: np.ndarray, pixdim: tuple[float, ...], spacing: tuple[float, ...], tmp_path: Path
) -> None:
    path = tmp_path / "scan.nii"
    nib.save(plain(path), path)
    _with_bytes(path, 280, srow.astype("<f4"))  # srow_x, srow_y and srow_z of NIfTI-1
    _with_bytes(path, 80, np.array(pixdim, "<f4"))
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.affine, np.diag([*spacing, 1]))
    assert any("singular" in warning for warning in volume.warnings)
    write_map(tmp_path / "map.nii", ARRAY, volume.header)
    stored, result = path.read_bytes()[:348], (tmp_path / "map.nii").read_bytes()[:348]
    assert result[80:92] == stored[80:92]
    assert result[252:328] == stored[252:328]  # codes, quaternion, offsets and srow
    np.testing.assert_array_equal(
        np.asarray(nib.load(tmp_path / "map.nii").dataobj), ARRAY.astype(np.float16)
    )


def test_a_singular_sform_leaves_the_qform(tmp_path: Path) -> None:
    path = tmp_path / "scan.nii"
    image = nib.Nifti1Image(ARRAY, None)
    image.set_qform(np.diag([-0.7, -0.7, 5, 1]), 1)
    image.set_sform(np.eye(4), 1)
    nib.save(image, path)
    _with_bytes(path, 280, np.zeros((3, 4), "<f4"))
    volume = read_volume(path)
    np.testing.assert_allclose(volume.affine, np.diag([-0.7, -0.7, 5, 1]), atol=1e-6)
    assert volume.warnings == ("the affine of the sform is singular; the qform was used",)


def test_an_affine_and_a_spacing_that_disagree_are_told(tmp_path: Path) -> None:
    path = tmp_path / "scan.nii"
    image = nib.Nifti1Image(ARRAY, None)
    image.set_qform(np.diag([0.7, 0.7, 5, 1]), 1)
    image.set_sform(np.eye(4), 1)
    nib.save(image, path)
    volume = read_volume(path)
    assert np.array_equal(volume.affine, np.eye(4))
    assert volume.warnings == ("the stored spacing is 0.7 x 0.7 x 5 mm; the affine was used as it is",)


def test_a_singular_sform_and_a_qform_that_is_none_leave_the_spacing(tmp_path: Path) -> None:
    path = tmp_path / "scan.nii"
    image = nib.Nifti1Image(ARRAY, np.eye(4))
    image.set_qform(np.diag([2, 3, 4, 1]), 1)
    nib.save(image, path)
    _with_bytes(path, 256, np.ones(3, "<f4"))  # the quaternion of NIfTI-1
    _with_bytes(path, 280, np.zeros((3, 4), "<f4"))
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.affine, np.diag([2, 3, 4, 1]))
    assert volume.warnings == ("the affine is singular; 2 x 3 x 4 mm along the stored axes was used",)


@pytest.mark.parametrize("tilt", [0, 1, 3, 10])
def test_a_qform_that_is_almost_half_a_turn_is_read_as_it_is(tilt: float, tmp_path: Path) -> None:
    affine = oblique_about_z(180 + tilt)
    image = nib.Nifti1Image(ARRAY, None)
    image.set_qform(affine, 1)
    image.set_sform(None, 0)
    nib.save(image, tmp_path / "scan.nii")
    np.testing.assert_allclose(read_volume(tmp_path / "scan.nii").affine, affine, atol=1e-4)


@pytest.mark.parametrize("length", [0.0, -2.0, np.nan])
def test_a_spacing_that_is_none_is_warned_of_and_given_back(
    length: float, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "scan.nii"
    nib.save(nib.Nifti1Image(ARRAY, OBLIQUE), path)
    _with_bytes(path, 84, np.array([length], "<f4"))
    volume = read_volume(path)
    np.testing.assert_allclose(volume.affine, OBLIQUE, rtol=1e-6)
    assert len(volume.warnings) == 1 and "spacing" in volume.warnings[0]
    write_map(tmp_path / "map.nii", ARRAY, volume.header)
    assert (tmp_path / "map.nii").read_bytes()[76:92] == path.read_bytes()[76:92]
    assert capfd.readouterr().err == ""


def test_the_same_map_gives_the_same_bytes(tmp_path: Path) -> None:
    nib.save(plain(tmp_path), tmp_path / "scan.nii")
    volume = read_volume(tmp_path / "scan.nii")
    for name in ("a.nii.gz", "b.nii.gz"):
        write_map(tmp_path / name, ARRAY, volume.header)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_a_small_spacing_is_not_singular(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(ARRAY, np.diag([1e-3, 1e-3, 1e-3, 1])), tmp_path / "scan.nii")
    assert read_volume(tmp_path / "scan.nii").warnings == ()


def test_a_map_of_another_shape_is_refused(tmp_path: Path) -> None:
    nib.save(plain(tmp_path), tmp_path / "scan.nii")
    with pytest.raises(ValueError, match="shape"):
        write_map(tmp_path / "map.nii", ARRAY[1:], read_volume(tmp_path / "scan.nii").header)


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt(), SystemExit(143)])
def test_a_writer_that_fails_leaves_nothing_and_keeps_the_old(error: BaseException, tmp_path: Path) -> None:
    target = tmp_path / "map.nii"
    target.write_text("old")

    def fail(partial: Path) -> None:
        assert partial.name.startswith(PARTIAL_PREFIX) and partial.parent == tmp_path
        partial.write_text("half")
        raise error

    with pytest.raises(type(error)):
        write_atomically(target, fail)
    assert [path.name for path in tmp_path.iterdir()] == ["map.nii"]
    assert target.read_text() == "old"


def test_where_permissions_cannot_be_set_files_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "chmod", refuse)
    write_atomically(tmp_path / "map.nii", lambda partial: partial.write_text("whole"))
    assert (tmp_path / "map.nii").read_text() == "whole"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_name_as_long_as_allowed_can_be_written(tmp_path: Path) -> None:
    target = tmp_path / ("n" * 248 + ".nii.gz")
    write_atomically(target, lambda partial: partial.write_text("whole") and None)
    assert [path.name for path in tmp_path.iterdir()] == [target.name]
    assert target.stat().st_mode & 0o444 == 0o444


@given(hnp.arrays(np.float32, st.tuples(*[st.integers(1, 5)] * 3), elements=st.floats(width=32)))
def test_what_is_read_is_finite(array: np.ndarray) -> None:
    from mood_infer.volume import _finite

    mended, warnings = _finite(array)
    assert np.isfinite(mended).all()
    finite = np.isfinite(array)
    np.testing.assert_array_equal(mended[finite], array[finite])
    assert bool(warnings) is not bool(finite.all())
