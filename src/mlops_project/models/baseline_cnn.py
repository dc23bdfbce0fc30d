"""A small convolutional network: the floor that the others have to beat."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


class BaselineCNN(nn.Module):
    """Blocks of convolution, batch norm, pooling and ReLU, then two linear layers.

    Args:
        num_classes: K.
        channels: output channels of each block; each block halves the image's side.
        classifier_hidden: units before the head.
        dropout_rate: before the head.

    Any image of at least 2^blocks pixels a side fits, since the last features are averaged.
    """

    def __init__(
        self,
        num_classes: int = 2,
        channels: Sequence[int] = (32, 64, 128, 256),
        classifier_hidden: int = 128,
        dropout_rate: float = 0.5,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        blocks = []
        before = 3
        for after in channels:
            blocks.append(
                nn.Sequential(
                    nn.Conv2d(before, after, kernel_size=3, padding=1, bias=False),
                    nn.BatchNorm2d(after),
                    # The same numbers as after the ReLU, which then has a quarter of the pixels.
                    nn.MaxPool2d(2),
                    nn.ReLU(inplace=True),
                )
            )
            before = after
        self.blocks = nn.Sequential(*blocks)
        self.hidden = nn.Sequential(nn.Linear(before, classifier_hidden), nn.ReLU(inplace=True))
        self.dropout = nn.Dropout(dropout_rate)
        self.head = nn.Linear(classifier_hidden, num_classes)
        self.recompute = False

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Whether the backward pass recomputes each block's activations; timm's name for it."""
        self.recompute = enable

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Float [B, 3, S, S] to logits [B, K]."""
        return self.forward_head(self.forward_features(images))

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        """Float [B, 3, S, S] to the last feature map [B, C, h, w]; timm's name for it."""
        features = images
        for block in self.blocks:
            if self.recompute and self.training and torch.is_grad_enabled():
                features = torch.utils.checkpoint.checkpoint(block, features, use_reentrant=False)
            else:
                features = block(features)
        return features

    def forward_head(self, features: torch.Tensor) -> torch.Tensor:
        """The last feature map [B, C, h, w] to logits [B, K]; timm's name for it."""
        return self.head(self.dropout(self.hidden(features.mean(dim=(2, 3)))))
