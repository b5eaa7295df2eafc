"""Members in one: which are averaged, and what comes out."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from mood_infer.averaging import average_members
from mood_infer.challenge import Region
from mood_infer.predictor import Predictor
from mood_infer.volume import Array3D, read_volume
from mood_infer.weights import Manifest, load_member, read_manifest, save_member, write_manifest

EDGES = ("hard", "smooth", "hard", "hard", "hard")


@pytest.fixture
def mixed(make_weights: Callable[..., Path], tmp_path: Path) -> tuple[Path, Manifest]:
    """Five members: the second and third are like the first, but the second is a smooth one."""
    folder = make_weights(tmp_path / "weights", count=len(EDGES), smooth=[1]) / "brain"
    manifest = read_manifest(folder)
    members = list(manifest.members)
    for number in (1, 2):
        network = load_member(folder, manifest, members[0])
        torch.manual_seed(number)
        with torch.no_grad():
            for weights in network.parameters():
                weights.add_(0.2 * weights.abs().mean() * torch.randn_like(weights))
        sha256 = save_member(folder / members[number].file, network)
        members[number] = members[number].model_copy(update={"sha256": sha256})
    manifest = manifest.with_members(tuple(members))
    write_manifest(folder, manifest)
    return folder, manifest


def test_members_of_like_weights_and_one_kind_become_the_mean_of_their_weights(
    mixed: tuple[Path, Manifest],
) -> None:
    folder, manifest = mixed
    networks = [load_member(folder, manifest, member) for member in manifest.members]
    torch.manual_seed(0)
    for network in networks:  # statistics as training leaves them, each network's own
        for name, tensor in network.named_buffers():
            if "running" in name:
                tensor.add_(torch.rand_like(tensor))
    before = [{name: tensor.clone() for name, tensor in one.state_dict().items()} for one in networks]
    averaged, made, weights = average_members(manifest, networks)
    files = [member.file for member in manifest.members]
    assert [member.file for member in averaged.members] == [
        f"mean of {files[0]}, {files[2]}",
        files[1],
        *files[3:],
    ]
    assert weights == [2, 1, 1, 1]
    assert [id(network) for network in made[1:]] == [id(networks[i]) for i in (1, 3, 4)]
    for name, tensor in made[0].state_dict().items():
        if tensor.is_floating_point():
            expected = (before[0][name].numpy().astype(float) + before[2][name].numpy()) / 2
            np.testing.assert_allclose(tensor.numpy(), expected, rtol=1e-6, atol=1e-9)
    for state, network in zip(before, networks, strict=True):  # none was changed
        assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())
    changed = manifest.members[2].model_copy(update={"sha256": "0" * 64})
    others = manifest.with_members((*manifest.members[:2], changed, *manifest.members[3:]))
    assert average_members(others, networks)[0].digest() != averaged.digest()


def test_fast_runs_the_averages(mixed: tuple[Path, Manifest], make_scan: Callable[..., Path]) -> None:
    """Where the first and third member are the same, their mean is each of them."""
    folder, manifest = mixed
    first, third = manifest.members[0], manifest.members[2]
    shutil.copy(folder / first.file, folder / third.file)
    twin = third.model_copy(update={"sha256": first.sha256})
    write_manifest(folder, manifest.with_members((first, twin)))
    scan = read_volume(make_scan(folder / "scan.nii.gz"))
    fast = Predictor.load(Region.BRAIN, folder, "cpu", precision="float32", speed="fast").predict(scan)
    one = Predictor.load(Region.BRAIN, folder, "cpu", members=[first.file], precision="float32")
    assert len(fast.members) == 1
    np.testing.assert_allclose(fast.working, one.predict(scan).working, atol=1e-6)


def test_an_average_counts_as_much_as_those_in_it(
    mixed: tuple[Path, Manifest], make_scan: Callable[..., Path]
) -> None:
    """Two hard twins and a smooth member of half the weight: 4/5 and 1/5, in both speeds."""
    folder, manifest = mixed
    first, soft, third = manifest.members[:3]
    shutil.copy(folder / first.file, folder / third.file)
    twin = third.model_copy(update={"sha256": first.sha256})
    halved = manifest.with_members((first, soft, twin)).model_copy(
        update={"smooth_weight": 0.5, "overlap": 0.0}
    )
    write_manifest(folder, halved)
    scan = read_volume(make_scan(folder / "scan.nii.gz", (32, 32, 32)))  # one window: nothing to stagger

    def score(members: list[str] | None, speed: Literal["exact", "fast"]) -> Array3D:
        return Predictor.load(Region.BRAIN, folder, "cpu", members, "float32", speed).predict(scan).working

    hard, smooth = score([first.file], "exact"), score([soft.file], "exact")
    expected = 0.8 * hard + 0.2 * smooth
    np.testing.assert_allclose(score(None, "exact"), expected, atol=1e-6)
    np.testing.assert_allclose(score(None, "fast"), expected, atol=1e-6)
    assert np.abs(hard - smooth).max() > 0.1
