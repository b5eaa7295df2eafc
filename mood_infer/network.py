"""The paper's U-Net (section 2.2), as MONAI's DynUNet."""

from monai.networks.nets import DynUNet
from pydantic import BaseModel, ConfigDict, Field
from torch import nn


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
