"""The classifier: the bottom-up network with a probability for each class at its top."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from .base import Model, evaluation
from .networks import BottomUp, linear_head
from .phase import Losses, Phase, trainable
from .scores import at_least_float32, fed


class Classifier(Model):
    r"""Class probabilities softmax(logits(x)), trained by maximum likelihood:

    .. math:: \min \; -\frac1n \sum_i \log \Pr(y_i \mid x_i)

    Args:
        network: a :class:`BottomUp`, or any module from images (n, ...) to features (n,
            `network.features`).
        classes: the number of classes, at least 2.

    Shape:
        images (N, C, H, W) -> logits (N, classes), float32 or wider. Labels are int64 (N,), from 0
        to classes - 1.
    """

    def __init__(self, network: nn.Module, classes: int) -> None:
        super().__init__()
        features = getattr(network, "features", None)
        if not isinstance(features, int):
            raise ValueError(
                "the network of a classifier must say how many features it returns, "
                "by an integer attribute `features` "
                f"(got {features!r} from {type(network).__name__})"
            )
        if classes < 2:
            raise ValueError(f"a classifier needs at least 2 classes (got {classes})")
        self.network, self.classes = network, classes
        self.head = linear_head(features, classes)

    @classmethod
    def for_images(cls, image_shape: Sequence[int], classes: int, *, width: int = 64) -> Classifier:
        """A classifier of images of shape (C, H, W) with the library's own network."""
        return cls(BottomUp(image_shape, width=width), classes)

    def forward(self, x: Tensor) -> Tensor:
        return at_least_float32(self.head(self.network(fed(self.network, x))))

    def thought_vectors(self, x: Tensor) -> list[Tensor]:
        """The network's features of every stage, the deepest last."""
        return cast(BottomUp, self.network).thought_vectors(fed(self.network, x))

    def probabilities(self, x: Tensor) -> Tensor:
        """Pr(y = k | x), shape (N, classes), in evaluation mode and without gradients."""
        with evaluation(self):
            return self(x).softmax(1)  # type: ignore[no-any-return]

    def predict(self, x: Tensor) -> Tensor:
        """The most probable class of each image, int64 (N,), in evaluation mode."""
        return self.probabilities(x).argmax(1)

    def loss(self, x: Tensor, labels: Tensor) -> Tensor:
        """The mean cross-entropy in nats."""
        return _cross_entropy(self(x), labels)

    def phases(self) -> list[Phase]:
        """``"classifier"``, which needs labels."""
        return [Phase("classifier", trainable(self), self._phase)]

    def _phase(self, images: Tensor, labels: Tensor | None) -> Losses:
        if labels is None:
            raise ValueError("a classifier learns from labels: use data that has them")
        logits = self(images)
        accuracy = (logits.argmax(1) == labels).to(logits.dtype).mean()
        return {"loss": _cross_entropy(logits, labels), "accuracy": accuracy.detach()}


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    try:
        return F.cross_entropy(logits, labels)
    except IndexError as error:  # what PyTorch says on a CPU
        found = f"{int(labels.min())} .. {int(labels.max())}"
        allowed = f"0 .. {logits.shape[1] - 1}"
        raise ValueError(f"labels must lie in {allowed} (got {found})") from error
