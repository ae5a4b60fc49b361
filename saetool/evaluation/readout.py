"""What the model says of an image: its final embedding, and class logits from its own head or from a linear probe."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from saetool.evaluation.probing import Standardizer, fit_full_probe, unconverged
from saetool.vision.backbone import Backbone
from saetool.vision.paths import find_module, submodule

HEADS = ("head", "classifier", "fc", "heads.head", "head.fc", "classifier.1")
"""What timm, transformers and torchvision call the linear map from the final embedding to class logits."""


@dataclass(frozen=True)
class Readout:
    """Embedding [batch, e] and class logits [batch, classes] of images, differentiable in the activations.

    head: module path of the model's own classifier, whose input is the embedding; without it the embedding is the
    model's output and `probe` (weights [classes, e] and bias [classes]) gives the logits, where there is one.
    """

    backbone: Backbone
    head: str | None = None
    probe: tuple[Tensor, Tensor] | None = None

    def __call__(self, images: Tensor) -> tuple[Float[Tensor, "batch e"], Float[Tensor, "batch classes"] | None]:
        """Run the whole model, in float32 from the embedding on."""
        if self.head is None:
            embedding = self.backbone.forward(images).float()
            if self.probe is None:
                return embedding, None
            weight, bias = (part.to(embedding.device) for part in self.probe)
            return embedding, embedding @ weight.T + bias
        caught: list[Tensor] = []

        def catch(module: nn.Module, inputs: Any) -> None:
            caught.append(inputs[0])

        with submodule(self.backbone.whole, self.head).register_forward_pre_hook(catch):
            logits = self.backbone.forward(images).float()
        return caught[-1].float(), logits


def heads_of(backbone: Backbone) -> dict[str, nn.Linear]:
    """Return the linear maps that may be the model's classifier, by path."""
    return {path: found for path in HEADS if isinstance(found := find_module(backbone.whole, path), nn.Linear)}


def find_head(backbone: Backbone, n_classes: int) -> str | None:
    """Return the path of the model's linear classifier over `n_classes` classes, or None.

    Another number of outputs is another task, or a projection (CLIP's), and no classifier of these labels.
    """
    return next((path for path, head in heads_of(backbone).items() if head.out_features == n_classes), None)


def linear_probe(
    embeddings: Float[Tensor, "images e"], labels: Sequence[str] | np.ndarray, classes: list[str]
) -> tuple[Float[Tensor, "classes e"], Float[Tensor, "classes"]]:
    """Fit a logistic regression on embeddings and return its weights and bias, centered over classes.

    Adding one number to all of an image's logits changes no probability; centered, a logit's change is a class's own.
    """
    features = embeddings.double().cpu().numpy()
    scale = Standardizer(features)
    with unconverged():
        probe: LogisticRegression = fit_full_probe(scale(features), np.asarray(labels))
    weight, bias = probe.coef_, probe.intercept_
    if weight.shape[0] == 1:
        weight, bias = np.concatenate([-weight / 2, weight / 2]), np.concatenate([-bias / 2, bias / 2])
    raw_weight = weight * scale.factor
    raw_bias = bias - raw_weight @ scale.mean
    order = [list(probe.classes_).index(name) for name in classes]
    raw_weight, raw_bias = raw_weight[order], raw_bias[order]
    centered = raw_weight - raw_weight.mean(0), raw_bias - raw_bias.mean()
    return torch.from_numpy(centered[0]).float(), torch.from_numpy(centered[1]).float()
