"""Samples shown again, where a GPU learns faster than they are made (data echoing, Choi et al. 2019)."""

from collections import deque
from collections.abc import Iterator

import torch
from torch import Tensor

from mood_train.seeds import generator

KEPT = 64  # batches that are drawn from
# odds of a flip of what is shown again, whatever a region's `place_rate`: mirrored it is all but a new sample
LEFT_RIGHT = 0.5  # first axis
OTHERWISE = 0.1  # each other axis

Batch = tuple[Tensor, Tensor]


class Replay:
    """The last batches of a run; what is drawn at a step is a function of the seed, the step and these."""

    def __init__(self, seed: int, rank: int) -> None:
        """Start empty."""
        self._seed, self._rank = seed, rank
        self._batches: deque[Batch] = deque(maxlen=KEPT)

    def add(self, image: Tensor, label: Tensor) -> None:
        """Keep a batch, (N, 1, W, W, W) each in [0,1], on its device in half precision."""
        self._batches.append((image.half(), label.half()))

    def __len__(self) -> int:
        """How many batches are kept."""
        return len(self._batches)

    def images(self) -> Iterator[Tensor]:
        """The images of the batches kept, (N, 1, W, W, W) float32."""
        return (image.float() for image, _ in self._batches)

    def draw(self, step: int) -> Batch:
        """A batch of samples kept, each drawn from all, and flipped along each axis at random.

        Returns:
            image and label, (N, 1, W, W, W) float32.
        """
        rng = generator(self._seed, f"replay {self._rank}", step)
        count = len(self._batches[0][0])
        images, labels = [], []
        for _ in range(count):
            image, label = self._batches[int(rng.integers(len(self._batches)))]
            number = int(rng.integers(count))
            flipped = rng.random(3) < (LEFT_RIGHT, OTHERWISE, OTHERWISE)
            axes = [1 + axis for axis in range(3) if flipped[axis]]
            images.append(image[number].flip(axes))
            labels.append(label[number].flip(axes))
        return torch.stack(images).float(), torch.stack(labels).float()
