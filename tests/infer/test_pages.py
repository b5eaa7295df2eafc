"""The memory of tensors comes in large pages, where Linux gives them."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

TENSORS, BYTES = 10, 100 * 2**20
SWITCH = Path("/sys/kernel/mm/transparent_hugepage/enabled")

FAULTS = f"""
import resource
import mood_infer
import torch

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

torch.ones({BYTES}, dtype=torch.uint8)
before = faults()
for _ in range({TENSORS}):
    torch.ones({BYTES}, dtype=torch.uint8)
print(faults() - before)
"""


def _faults(setting: str | None) -> int:
    rest = {name: value for name, value in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"}
    environment = rest | ({"THP_MEM_ALLOC_ENABLE": setting} if setting else {})
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], env=environment, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(
    not SWITCH.exists() or "[madvise]" not in SWITCH.read_text(), reason="all pages or none are large here"
)
def test_tensors_come_in_large_pages_unless_the_host_says_otherwise() -> None:
    small = TENSORS * BYTES // resource.getpagesize()
    assert _faults("0") == pytest.approx(small, rel=0.05)
    assert _faults(None) < small / 20
