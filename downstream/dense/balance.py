"""Loss normalisation of self-training: Zoph et al. 2020 (arXiv:2006.06882), appendix B.

    L = (L_h + alpha (mean of L_h / mean of L_p) L_p) / (1 + alpha)

L_h and L_p are the mean losses of a step's images with human and with generated annotations, and
their means exponential moving averages over training. What the paper leaves open is decided here:

- The averages are of the steps before, so that all forward passes of a step have one factor,
  however many they are and of whatever kind. In the first step the factor is 1.
- An average counts the steps that saw an image of its kind, and is corrected for its start at 0, as
  Adam's are (arXiv:1412.6980, section 3).
- Where an average is 0, the factor is 1: what was never lost has no scale.
- A step whose loss is not finite does not count. It ends the run at the next line of metrics.jsonl.
- A minibatch of human and generated images at random has the formula in expectation; where each
  forward pass sees one kind (`data.minibatch: apart`) it is exact.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Balance(nn.Module):
    """The weights of images with human and with generated annotations, and the state behind them.

    Args:
        alpha: weight of the generated ones, relative to that of the human ones.
        decay: of the moving averages.
        share: of a step's images that are generated, in expectation.
        passes: forward passes of a step.
    """

    seen: Tensor
    """float64 [2, 2]: of human and generated images of the steps that are not in `averages` yet
    the sum of their losses and their number. After each step the engine makes it the mean over the
    processes, whose quotient is the mean over the images of all of them."""
    averages: Tensor
    """float64 [2, 2]: of each kind, from 0, the moving averages of its mean loss and of 1."""

    def __init__(self, alpha: float, decay: float, *, share: float, passes: int) -> None:
        super().__init__()
        self.alpha, self.decay, self.passes = alpha, decay, passes
        self.shares = (1 - share, share)
        self.begun = 0
        """Forward passes of this process; a checkpoint is between two steps, so it begins at 0."""
        self.register_buffer("seen", torch.zeros(2, 2, dtype=torch.float64))
        self.register_buffer("averages", torch.zeros(2, 2, dtype=torch.float64))

    @property
    def factor(self) -> Tensor:
        """mean of L_h / mean of L_p, float64 []."""
        human, generated = (self.averages[:, 0] / self.averages[:, 1]).unbind()  # 0 / 0: unseen
        known = (human > 0) & (generated > 0)
        return torch.where(known, human / generated, 1.0)

    @torch.no_grad()
    def forward(self, losses: Tensor, weight: Tensor, generated: Tensor) -> Tensor:
        """By what to multiply the losses of a forward pass, so that their mean over all passes of a
        step is L; called once for each pass.

        Args:
            losses: float [b].
            weight: float [b], 0 for an unreadable image.
            generated: bool [b].

        Returns:
            float32 [b], without gradient.
        """
        if self.begun % self.passes == 0:
            self._take_in()
        self.begun += 1
        kinds = torch.stack([~generated, generated]) & (weight > 0)  # bool [2, b]
        of_kinds = torch.where(kinds, losses.double(), 0.0)  # 0 times NaN were NaN
        self.seen += torch.stack([of_kinds.sum(1), kinds.sum(1)], dim=1)
        parts = self.factor.new_tensor([1.0, self.alpha]) / (1 + self.alpha)
        human, of_generated = (parts / parts.new_tensor(self.shares)).unbind()
        return weight * torch.where(generated, self.factor * of_generated, human).float()

    def _take_in(self) -> None:
        """The step that is over into the averages."""
        means = self.seen[:, 0] / self.seen[:, 1]  # NaN of a kind that was not seen
        now = torch.stack([means, torch.ones_like(means)], dim=1)
        counts = means.isfinite()[:, None]
        self.averages.copy_(
            torch.where(counts, self.averages.lerp(now, 1 - self.decay), self.averages)
        )
        self.seen.zero_()
