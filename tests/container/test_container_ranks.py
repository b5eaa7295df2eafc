"""Several processes in one container share a folder, as the README has it for Kubernetes."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from containers import HARD, Image, names
from odd_inputs import body, save

pytestmark = pytest.mark.container


def test_two_processes_write_the_bytes_of_one(
    image: Image, weights: Path, make_folder: Callable[[], Path]
) -> None:
    data, one, two = make_folder(), make_folder(), make_folder()
    for shift in range(3):
        save(data / f"case{shift}.nii.gz", np.roll(body(), shift, axis=0).astype(np.float32))
    alone = image.predict(data, one, weights=weights).wait()
    assert alone.code == 0, alone.err
    mounts = [f"{data}:/mnt/data:ro", f"{two}:/mnt/pred", f"{weights}:/weights:ro"]
    command = "torchrun --standalone --local-addr localhost --nproc-per-node 2 -m mood_infer predict"
    command += " /mnt/data /mnt/pred --region brain --mode pixel"
    options = [*HARD, "--tmpfs=/tmp", "--env=OMP_NUM_THREADS=1"]  # torchrun itself needs a folder for logs
    image.run(*command.split(), mounts=mounts, options=options, check=True)
    assert names(two) == names(one) == ["case0.nii.gz", "case1.nii.gz", "case2.nii.gz"]
    assert all((two / name).read_bytes() == (one / name).read_bytes() for name in names(one))
