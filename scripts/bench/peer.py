"""What a user of MONAI would write: ``peer.py SCAN OUT WEIGHTS``, from file to map.

The same networks, spacing, window, overlap and Gaussian; one sliding window a member, in float32.
"""

import math
import sys
from pathlib import Path

import numpy as np
import torch
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    Invertd,
    Lambdad,
    LoadImaged,
    Orientationd,
    SaveImaged,
    Spacingd,
)

from mood_infer.intensity import to_unit
from mood_infer.weights import load_member, read_manifest


def main() -> None:
    """Score one scan with all members of a region's weights."""
    scan, out, folder = map(Path, sys.argv[1:])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    manifest = read_manifest(folder)
    networks = [load_member(folder, manifest, member).to(device) for member in manifest.members]
    weights = [manifest.weight_of(member) for member in manifest.members]

    def scale(image: MetaTensor) -> MetaTensor:
        unit = to_unit(image.numpy().astype(np.float32), manifest.intensity)
        return MetaTensor(
            torch.from_numpy(unit), meta=image.meta, applied_operations=image.applied_operations
        )

    prepare = Compose(
        [
            LoadImaged("image", image_only=True),
            EnsureChannelFirstd("image"),
            Lambdad("image", scale, track_meta=False),
            Orientationd("image", axcodes="RAS", labels=None),
            Spacingd(
                "image",
                pixdim=[manifest.spacing] * 3,
                mode="bilinear",
                # axes whose spacing lies between the two stay as they are
                min_pixdim=None if manifest.upsample else [manifest.spacing] * 3,
                max_pixdim=None if manifest.upsample else [math.inf] * 3,
            ),
        ]
    )
    finish = Compose(
        [
            Invertd("pred", transform=prepare, orig_keys="image", nearest_interp=False),
            SaveImaged(
                "pred", output_dir=out, output_postfix="", separate_folder=False, output_dtype=np.float32
            ),
        ]
    )
    inferer = SlidingWindowInferer(
        manifest.window,
        sw_batch_size=4,  # as in MONAI's tutorials; its default of 1 is slower still
        overlap=manifest.overlap,
        mode="gaussian",
        sigma_scale=manifest.sigma,
    )
    data = prepare({"image": scan})
    image = data["image"][None].to(device)
    with torch.inference_mode():
        total = torch.zeros_like(image)
        for network, weight in zip(networks, weights, strict=True):
            total += weight * torch.sigmoid(inferer(image, network))
    data["pred"] = (total / sum(weights))[0].cpu()
    finish(data)


if __name__ == "__main__":
    main()
