"""Other ways to run a network, as ratios of torch by default: ``engines.py [--region R] [--runs N]``.

What was tried for speed, on windows of the sample scan that all ways take in turns. A way whose package is
not installed is left out: ``openvino``, ``nncf`` and ``onnxruntime`` (with ``onnx``) are no requirements of
this project. All have tensors in large pages. "off by" is the largest difference of a score.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from cases import Size, make_scan
from torch import Tensor, nn

from mood_infer.challenge import Region
from mood_infer.network import fold_norms, window_logits
from mood_infer.predictor import format_name, reduced_precision
from mood_infer.preparation import body_box, prepare
from mood_infer.volume import read_volume
from mood_infer.weights import find_weights, load_member, read_manifest

WINDOWS = 8  # a multiple of every batch below
CALIBRATION = 64  # windows shown to an int8 network
SIZES = {Region.BRAIN: "256", Region.ABDOM: "300x300x300@1.5"}

PLAIN = "torch by default, 1 at once"
Way = Callable[[Tensor], Tensor]  # (B, 1, w, w, w) windows to logits
Named = tuple[str, int, Way]  # and how many windows at once


class Logits(nn.Module):
    """A network as engines want it: one module, one output."""

    def __init__(self, network: nn.Module) -> None:
        """Wrap a network in evaluation."""
        super().__init__()
        self.network = network
        self.eval()

    def forward(self, windows: Tensor) -> Tensor:
        """See :func:`window_logits`."""
        return window_logits(self.network, windows)


def cut_windows(region: Region, count: int) -> Tensor:
    """(count, 1, w, w, w) windows spread over the body of the sample scan."""
    manifest = read_manifest(find_weights(region))
    side = manifest.window
    with TemporaryDirectory() as folder:
        path = Path(folder) / "scan.nii.gz"
        make_scan(path, Size.parse(SIZES[region]))
        image, _ = prepare(read_volume(path), manifest.intensity, manifest.spacing, manifest.upsample)
    body = torch.from_numpy(image[body_box(image, region, side // 8)])
    generator = torch.Generator().manual_seed(0)
    windows = torch.empty(count, 1, side, side, side)
    for window in windows[:, 0]:
        corner = [int(torch.randint(n - side + 1, (), generator=generator)) for n in body.shape]
        window[:] = body[tuple(slice(n, n + side) for n in corner)]
    return windows


class Halved(Logits):
    """The same with the weights kept in 16 bits, but for the last layer: what engines can trace."""

    def __init__(self, network: Logits, half: torch.dtype) -> None:
        """Take a copy of a network."""
        super().__init__(deepcopy(network.network))
        self.half = half
        self.network.skip_layers.to(half)  # type: ignore[operator,union-attr]

    def forward(self, windows: Tensor) -> Tensor:
        """See :func:`window_logits`."""
        return super().forward(windows.to(self.half))


def torch_ways(plain: Logits, folded: Logits, example: Tensor) -> Iterator[Named]:
    """Name, windows at once, and how to compute them, of each way within torch."""
    last = deepcopy(folded).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    half = reduced_precision(torch.device("cpu"))

    usual, ours = (2, in_layout(last)) if half is None else (1, in_layout(under_autocast(last, half)))
    yield PLAIN, 1, plain
    yield "torch by default, 2 at once", 2, plain
    yield "torch by default, 4 at once", 4, plain
    if half is not None:
        yield f"torch under autocast to {format_name(half)}, 4 at once", 4, under_autocast(plain, half)
    yield "norms folded, 2 at once", 2, folded
    yield "norms folded, channels last, 2 at once: ours in float32", 2, in_layout(last)
    if half is not None:
        yield f"the same, 1 at once, in {format_name(half)}: ours", usual, ours
    for count in sorted({1, 2, 4, 8} - {usual}):
        yield f"ours, {count} at once", count, ours
    for threads in sorted({1, 2 * torch.get_num_threads()}):
        yield f"ours, threads: {threads}", usual, with_threads(ours, threads)
    module, name = last, "ours"
    if half is None:
        yield "ours, without oneDNN", usual, without_onednn(ours)  # in 16 bits it takes ten seconds a window
    else:
        module, name = Halved(last, half), f"ours, weights kept in {format_name(half)}"
        yield name, usual, in_layout(module)
    batch = example[:usual].to(memory_format=torch.channels_last_3d)
    traced = torch.jit.trace(module, batch)
    yield f"{name}, torch.jit, frozen", usual, in_layout(torch.jit.freeze(traced))
    yield (
        f"{name}, torch.jit, optimize_for_inference",
        usual,
        in_layout(torch.jit.optimize_for_inference(traced)),
    )
    yield f"{name}, torch.compile", usual, in_layout(torch.compile(module))


def in_layout(way: Way) -> Way:
    """The same on windows with their channels last."""
    return lambda windows: way(windows.to(memory_format=torch.channels_last_3d))


def under_autocast(way: Way, half: torch.dtype) -> Way:
    """The same in 16 bits."""

    def run(windows: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=half):
            return way(windows)

    return run


def with_threads(way: Way, threads: int) -> Way:
    """The same on another number of CPU threads."""
    usual = torch.get_num_threads()

    def run(windows: Tensor) -> Tensor:
        torch.set_num_threads(threads)
        try:
            return way(windows)
        finally:
            torch.set_num_threads(usual)

    return run


def without_onednn(way: Way) -> Way:
    """The same by torch's own convolutions."""

    def run(windows: Tensor) -> Tensor:
        with torch.backends.mkldnn.flags(enabled=False):
            return way(windows)

    return run


def openvino_ways(folded: Logits, calibration: Tensor) -> Iterator[Named]:
    """The same through OpenVINO, in float32, in 16 bits where we do, and in int8."""
    import openvino

    shape = (1, *calibration.shape[1:])
    model = openvino.convert_model(folded, example_input=calibration[:1], input=shape)

    def compiled(graph: object, precision: str = "f32") -> Way:
        settings = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        run = openvino.compile_model(graph, "CPU", settings)
        return lambda windows: torch.from_numpy(run(windows.numpy())[0])

    yield "OpenVINO, float32", 1, compiled(model)
    if reduced_precision(torch.device("cpu")) is not None:
        yield "OpenVINO, bfloat16", 1, compiled(model, "bf16")
    import nncf

    data = nncf.Dataset([window.numpy() for window in calibration.split(1)])
    yield "OpenVINO, int8", 1, compiled(nncf.quantize(model, data))


def onnx_ways(folded: Logits, example: Tensor) -> Iterator[Named]:
    """The same through ONNX Runtime."""
    import onnxruntime

    with TemporaryDirectory() as folder:
        path = f"{folder}/network.onnx"
        torch.onnx.export(folded, (example[:1],), path, input_names=["windows"], dynamo=False)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(windows: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"windows": windows.numpy()})[0])

    yield "ONNX Runtime", 1, run


def known(ways: Iterator[Named]) -> list[Named]:
    """All ways up to one whose package is missing or refuses the network, which is said."""
    found: list[Named] = []
    try:
        found.extend(ways)  # one by one: those before it are in
    except Exception as error:
        print(f"left out: {str(error).splitlines()[0]}", flush=True)
    return found


def compute(way: Named, windows: Tensor) -> tuple[Tensor, float]:
    """Scores of the windows, and the seconds that took."""
    _, count, logits = way
    begin = time.perf_counter()
    with torch.inference_mode():
        found = torch.cat([logits(batch) for batch in windows.split(count)])
    return torch.sigmoid(found), time.perf_counter() - begin


def working(ways: list[Named], windows: Tensor) -> dict[str, Tensor]:
    """The scores by each way that works, which some find out only now; the first time is slow too."""
    scores = {}
    for way in ways:
        try:
            scores[way[0]], _ = compute(way, windows)
        except Exception as error:
            print(f"left out: {way[0]}: {str(error).splitlines()[0]}", flush=True)
    return scores


def main() -> None:
    """Print a table of medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--region", type=Region, choices=list(Region), default=Region.BRAIN)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    manifest = read_manifest(folder := find_weights(options.region))
    network = load_member(folder, manifest, manifest.members[0])
    windows = cut_windows(options.region, CALIBRATION)
    timed = windows[:: CALIBRATION // WINDOWS]
    plain, folded = Logits(network), Logits(fold_norms(deepcopy(network)))
    makers = (torch_ways(plain, folded, timed), openvino_ways(folded, windows), onnx_ways(folded, timed))
    ways = [way for maker in makers for way in known(maker)]
    scores = working(ways, timed)
    ways = [way for way in ways if way[0] in scores]
    seconds: dict[str, list[float]] = {name: [] for name in scores}
    for way in ways * options.runs:  # in turns, so that a busy moment does not hit one of them alone
        seconds[way[0]].append(compute(way, timed)[1])
    base = statistics.median(seconds[PLAIN])
    print("| way | ms a window | of torch by default | off by |\n|---|---|---|---|")
    for name, taken in seconds.items():
        median, off = statistics.median(taken), float((scores[name] - scores[PLAIN]).abs().max())
        print(f"| {name} | {1000 * median / WINDOWS:.0f} | {median / base:.2f} | {off:.1g} |")


if __name__ == "__main__":
    main()
