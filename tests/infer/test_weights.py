import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch

from mood_infer import weights as module
from mood_infer.challenge import Region
from mood_infer.errors import WeightsError
from mood_infer.network import NetworkConfig, build_network, window_logits
from mood_infer.weights import (
    find_weights,
    load_member,
    read_manifest,
    save_member,
    verify_member,
    write_manifest,
)


@pytest.fixture
def folder(weights: Path, tmp_path: Path) -> Path:
    """A copy of one region's weights, to be spoilt."""
    return Path(shutil.copytree(weights / "brain", tmp_path / "brain"))


def edit(folder: Path, **changes: object) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_what_is_saved_is_loaded_with_parameters_rounded_to_half(tmp_path: Path, folder: Path) -> None:
    manifest = read_manifest(folder)
    torch.manual_seed(5)
    network = build_network(manifest.network)
    for _ in range(3):  # so that the running statistics are not those of a new network
        network(torch.rand(2, 1, 16, 16, 16))
    with torch.no_grad():  # as long training may leave a layer: too much for half precision
        network.get_submodule("bottleneck.conv1.conv").weight *= 1000
        network.get_submodule("bottleneck.norm1").running_var *= 1e6
        network.get_submodule("bottleneck.norm1").running_mean *= 1000
    network.eval()
    sha256 = save_member(tmp_path / "m.safetensors", network)
    member = manifest.members[0].model_copy(update={"file": "m.safetensors", "sha256": sha256})
    loaded = load_member(tmp_path, manifest, member)
    expected = network.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    for name, tensor in loaded.state_dict().items():
        exact = "running" in name or not tensor.is_floating_point()
        assert torch.equal(tensor, expected[name] if exact else expected[name].half().float()), name
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    numbers = sum(p.numel() for p in network.parameters())
    assert (
        tmp_path / "m.safetensors"
    ).stat().st_size < 2.5 * numbers + 20_000  # each tensor once, two bytes a number
    windows = torch.rand(1, 1, 32, 32, 32)
    torch.testing.assert_close(window_logits(loaded, windows), loaded(windows), atol=0, rtol=0)
    torch.testing.assert_close(loaded(windows), network(windows), atol=0.05, rtol=0.05)


@pytest.mark.parametrize("place", [0, 9, 1000, -1])
def test_one_flipped_byte_is_refused_by_name(folder: Path, place: int) -> None:
    path = folder / "member1.safetensors"
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    manifest = read_manifest(folder)
    with pytest.raises(WeightsError, match=r"member1\.safetensors.*sha256"):
        load_member(folder, manifest, manifest.members[1])
    assert verify_member(folder, manifest.members[1]) == "damaged"
    assert verify_member(folder, manifest.members[0]) is None


def test_a_missing_member_is_refused_by_name(folder: Path) -> None:
    (folder / "member0.safetensors").unlink()
    manifest = read_manifest(folder)
    with pytest.raises(WeightsError, match=r"member0\.safetensors"):
        load_member(folder, manifest, manifest.members[0])
    assert verify_member(folder, manifest.members[0]) == "No such file or directory"


def test_weights_of_another_network_are_refused(folder: Path) -> None:
    edit(folder, network={"widths": [4, 4, 6, 6, 10]})
    manifest = read_manifest(folder)
    with pytest.raises(WeightsError, match="does not fit"):
        load_member(folder, manifest, manifest.members[0])
    edit(folder, network={"widths": [4, 4, 6, 6, 8, 8]})
    manifest = read_manifest(folder)
    with pytest.raises(WeightsError, match="does not fit"):
        load_member(folder, manifest, manifest.members[0])


def test_numbers_that_are_not_finite_are_refused(folder: Path) -> None:
    network = build_network(NetworkConfig(widths=(4, 4, 6, 6, 8)))
    with torch.no_grad():
        next(network.parameters()).view(-1)[3] = 1e6  # more than half precision holds
    sha256 = save_member(folder / "member0.safetensors", network)
    manifest = read_manifest(folder)
    with pytest.raises(WeightsError, match="not finite"):
        load_member(folder, manifest, manifest.members[0].model_copy(update={"sha256": sha256}))


def test_a_right_checksum_of_no_safetensors_file_is_refused(folder: Path) -> None:
    import hashlib

    (folder / "member0.safetensors").write_bytes(b"not tensors")
    manifest = read_manifest(folder)
    member = manifest.members[0].model_copy(update={"sha256": hashlib.sha256(b"not tensors").hexdigest()})
    with pytest.raises(WeightsError, match="not a safetensors file"):
        load_member(folder, manifest, member)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"window": 40}, "window 40 is not a multiple of 16"),
        ({"overlap": 1.0}, "overlap"),
        ({"spacing": 0}, "spacing"),
        ({"region": "knee"}, "region"),
        ({"extra": 1}, "extra"),
        ({"network": {"widths": [4]}}, "network.widths"),
        ({"format": 2}, "format"),
        ({"intensity": {"name": "none"}}, "intensity"),
        ({"members": [{"file": "a"}]}, r"members\.0\.sha256"),
    ],
)
def test_errors_in_the_manifest_name_the_field(folder: Path, changes: dict[str, object], field: str) -> None:
    edit(folder, **changes)
    with pytest.raises(WeightsError, match=rf"manifest\.json: .*{field}"):
        read_manifest(folder)


def test_a_manifest_that_is_missing_or_no_json(folder: Path) -> None:
    (folder / "manifest.json").write_text("{")
    with pytest.raises(WeightsError, match=r"manifest\.json"):
        read_manifest(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(WeightsError, match=r"manifest\.json: no manifest"):
        read_manifest(folder)


def test_two_members_may_not_share_a_file(folder: Path) -> None:
    members = json.loads((folder / "manifest.json").read_text())["members"]
    edit(folder, members=[members[0], members[0]])
    with pytest.raises(WeightsError, match="share a file"):
        read_manifest(folder)


def test_the_digest_changes_with_what_shapes_the_maps(folder: Path, tmp_path: Path) -> None:
    manifest = read_manifest(folder)
    write_manifest(tmp_path, manifest)
    assert read_manifest(tmp_path) == manifest
    assert read_manifest(tmp_path).digest() == manifest.digest()
    changes = ({"overlap": 0.25}, {"spacing": 2.0}, {"sigma": 0.2}, {"members": manifest.members[:1]})
    digests = {manifest.model_copy(update=change).digest() for change in changes}
    assert len(digests | {manifest.digest()}) == 5
    first, *others = manifest.members
    for shaping in ({"edges": "smooth"}, {"sha256": "0" * 64}):
        member = first.model_copy(update=shaping)
        assert manifest.model_copy(update={"members": (member, *others)}).digest() not in digests
    told = first.model_copy(update={"licence": "CC0", "minutes": 1.5, "hardware": "a GPU"})
    for update in ({"normal_scores": (0.1, 0.2)}, {"members": (told, *others)}):
        assert manifest.model_copy(update=update).digest() == manifest.digest()


def test_the_scores_of_normal_scans_rise_and_go_with_the_members(folder: Path) -> None:
    manifest = read_manifest(folder)
    known = manifest.model_copy(update={"normal_scores": (0.1, 0.2)})
    write_manifest(folder, known)
    assert read_manifest(folder) == known
    assert known.with_members(manifest.members) == manifest
    edit(folder, normal_scores=[0.2, 0.1])
    with pytest.raises(WeightsError, match="normal_scores must rise"):
        read_manifest(folder)
    edit(folder, normal_scores=[0.2, 1.1])
    with pytest.raises(WeightsError, match=r"normal_scores must lie in \[0,1\]"):
        read_manifest(folder)


def test_a_manifest_that_cannot_be_written_leaves_the_old_one(folder: Path) -> None:
    manifest = read_manifest(folder)
    with pytest.raises(WeightsError, match=r"manifest\.json: cannot be written"):
        write_manifest(folder / "missing", manifest)
    before = (folder / "manifest.json").read_bytes()

    def full(_path: Path, _text: str) -> None:
        raise OSError(28, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(WeightsError, match="No space left on device"):
            write_manifest(folder, manifest.with_members(()))
    assert (folder / "manifest.json").read_bytes() == before
    assert not list(folder.glob(".*"))


def test_where_weights_are_looked_for(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_weights(Region.BRAIN, weights) == weights / "brain"
    assert find_weights(Region.BRAIN, weights / "brain") == weights / "brain"
    assert find_weights(Region.BRAIN, tmp_path) == tmp_path
    own = Path(module.__file__).parent.parent / "weights" / "abdom"
    monkeypatch.setattr(module, "MOUNTED_WEIGHTS", tmp_path / "missing")
    assert find_weights(Region.ABDOM) == own
    for wrong in (tmp_path, weights / "brain"):  # as of a misspelt path, or one folder too deep
        monkeypatch.setattr(module, "MOUNTED_WEIGHTS", wrong)
        with pytest.raises(WeightsError, match=r"has no brain/manifest\.json or abdom/manifest\.json"):
            find_weights(Region.ABDOM)
    shutil.copytree(weights / "brain", tmp_path / "brain")
    monkeypatch.setattr(module, "MOUNTED_WEIGHTS", tmp_path)
    assert find_weights(Region.BRAIN) == tmp_path / "brain" and find_weights(Region.ABDOM) == own
    monkeypatch.setattr(module, "MOUNTED_WEIGHTS", weights)
    assert find_weights(Region.ABDOM) == weights / "abdom"


def test_files_hold_parameters_in_half_precision(folder: Path) -> None:
    tensors = safetensors.torch.load_file(folder / "member0.safetensors")
    kinds = {"running" in name: tensor.dtype for name, tensor in tensors.items() if tensor.ndim}
    assert kinds == {False: torch.float16, True: torch.float32}


@pytest.mark.parametrize("region", Region)
def test_what_is_shipped(region: Region) -> None:
    """Ten small networks a region: each of five folds left out, with hard and with smooth edges."""
    folder = module.OWN_WEIGHTS / region
    manifest = read_manifest(folder, region)
    kinds = {(member.fold, member.edges) for member in manifest.members}
    assert kinds == {(fold, edges) for fold in range(5) for edges in ("hard", "smooth")}
    # in turns, so that an answer that a time limit cut short is of both
    assert [member.edges for member in manifest.members] == ["hard", "smooth"] * 5
    assert len(manifest.members) == 10 and len(manifest.normal_scores) >= 3
    for member in manifest.members:
        assert verify_member(folder, member) is None
        assert (folder / member.file).stat().st_size <= 5e6
