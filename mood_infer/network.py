"""The paper's U-Net (section 2.2), as MONAI's DynUNet."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


@contextmanager
def _without_matplotlib() -> Iterator[None]:
    """Let imports of matplotlib fail for now, as if it were not installed.

    MONAI imports pyplot wherever it can, and that fails in a read-only container, which has neither a HOME
    nor a /tmp to write to. Nothing used here draws.
    """
    block = "matplotlib" not in sys.modules
    if block:
        sys.modules["matplotlib"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if block:
            del sys.modules["matplotlib"]


with _without_matplotlib():
    from monai.networks.blocks.dynunet_block import UnetBasicBlock
    from monai.networks.nets import DynUNet


class NetworkConfig(BaseModel):
    """Widths of the network, from full resolution to the bottom; each step down halves the resolution."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    widths: tuple[int, ...] = Field(min_length=5)

    @property
    def divisor(self) -> int:
        """Window sides must be multiples of this many voxels."""
        return int(2 ** (len(self.widths) - 1))


DEEP_SUPERVISION_HEADS = 3  # coarse outputs besides the full-resolution one: four in all


def build_network(config: NetworkConfig) -> nn.Module:
    """Make the U-Net: two 3^3 convolutions, batch norm and LeakyReLU(0.01) a block, no biases.

    Args:
        config: the widths; the paper's are 32, 64, 128, 256, 320, 320 (31.19 M parameters).

    Returns:
        A module from (N, 1, X, Y, Z) intensities in [0,1] to logits: (N, 1, X, Y, Z) in evaluation, and
        (N, 4, 1, X, Y, Z) in training, where output 0 is the full-resolution one and each further one comes
        from half the resolution, upsampled to the window.
    """
    levels = len(config.widths)
    return DynUNet(
        spatial_dims=3,
        in_channels=1,
        out_channels=1,
        kernel_size=[3] * levels,
        strides=[1] + [2] * (levels - 1),
        upsample_kernel_size=[2] * (levels - 1),
        filters=list(config.widths),
        norm_name="batch",
        act_name=("leakyrelu", {"negative_slope": 0.01, "inplace": True}),
        deep_supervision=True,
        deep_supr_num=DEEP_SUPERVISION_HEADS,
    )


@cache
def count_parameters(config: NetworkConfig) -> int:
    """Number of weights of a network.

    One is built and let go: torch's "meta" device would spare that, but what it imports stays, 70 MB.
    """
    return sum(parameter.numel() for parameter in build_network(config).parameters())


def fold_norms(network: nn.Module) -> nn.Module:
    """Put each batch norm of a network in evaluation into the convolution before it.

    Args:
        network: as :func:`build_network` makes it; it is changed, and can no longer be trained.

    Returns:
        ``network``: the same function but for the rounding of float32, with fewer passes over memory.
    """
    for block in network.modules():
        if isinstance(block, UnetBasicBlock):
            block.conv1.conv = fuse_conv_bn_eval(block.conv1.conv, block.norm1)
            block.conv2.conv = fuse_conv_bn_eval(block.conv2.conv, block.norm2)
            block.norm1 = block.norm2 = nn.Identity()
    return network


def window_logits(network: nn.Module, windows: Tensor) -> Tensor:
    """What a network in evaluation says of some windows, its last layer always computed in float32.

    Under autocast the rest runs in 16 bits. Left there, the logits would be rounded to 8 or 11 bits, and
    the voxels with the highest scores, which an average precision lives on, would tie.

    Args:
        network: as :func:`build_network` makes it.
        windows: (B, 1, w, w, w) intensities in [0,1].

    Returns:
        (B, 1, w, w, w) float32 logits.
    """
    features = network.skip_layers(windows)  # type: ignore[operator]
    with torch.autocast(windows.device.type, enabled=False):
        logits: Tensor = network.output_block(features.float())  # type: ignore[operator]
    return logits
