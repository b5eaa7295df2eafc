"""Ways to pack and unpack a scan or a map: ``compression.py FILE [--runs N]``.

FILE is a ``.nii.gz``. Ratios are of Python's own gzip. The ways take turns; seconds are medians. ``zlib_ng``
is no requirement of this project: without it its rows are left out.
"""

import argparse
import importlib
import statistics
import time
from collections import defaultdict
from pathlib import Path

from isal import igzip

LEVELS = {"gzip": (1, 6), "isal.igzip": (0, 1, 2, 3), "zlib_ng.gzip_ng": (1, 6)}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    content = igzip.decompress(options.file.read_bytes())
    packing: dict[str, list[float]] = defaultdict(list)
    unpacking: dict[str, list[float]] = defaultdict(list)
    sizes: dict[str, int] = {}
    for _ in range(options.runs):
        for module, levels in LEVELS.items():
            try:
                library = importlib.import_module(module)
            except ImportError:
                continue
            for level in levels:
                name, begin = f"{module}, level {level}", time.perf_counter()
                packed = library.compress(content, level)
                middle = time.perf_counter()
                same = library.decompress(packed) == content
                packing[name].append(middle - begin)
                unpacking[name].append(time.perf_counter() - middle)
                sizes[name] = len(packed)
                if not same:
                    raise RuntimeError(f"{name}: other bytes came back")
    base = "gzip, level 6"
    print(f"{len(content) / 1e6:.0f} MB; ratios are of {base}\n")
    print("| way | packing, s | ratio | unpacking, s | ratio | of the size |\n|---|---|---|---|---|---|")
    medians = [{name: statistics.median(one) for name, one in part.items()} for part in (packing, unpacking)]
    for name, size in sizes.items():
        into, out = medians[0][name], medians[1][name]
        ratios = into / medians[0][base], out / medians[1][base]
        share = size / len(content)
        print(f"| {name} | {into:.2f} | {ratios[0]:.2f} | {out:.2f} | {ratios[1]:.2f} | {share:.3f} |")


if __name__ == "__main__":
    main()
