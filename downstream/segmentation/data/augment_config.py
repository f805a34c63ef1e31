"""How training views of images with masks are made, as settings, without torch and numpy."""

from __future__ import annotations

from dataclasses import dataclass

from ssld.common.settings import Probability, Settings, ShareBelowOne, require


@dataclass(frozen=True)
class MaskAugmentConfig(Settings, section="augment"):
    """SSLD section 4.6 and the reference's recipe (PaddleSeg, configs/_base_/cityscapes.yml)."""

    crop: tuple[int, int] = (512, 1024)
    """Height and width in px of a training view."""
    scale: tuple[float, float] = (0.5, 2.0)
    """Smallest and largest factor by which an image is resized before it is cropped."""
    scale_step: float = 0.25
    """Distance between the factors that are drawn from."""
    flip: Probability = 0.5
    """Probability of a horizontal flip."""
    colour: ShareBelowOne = 0.4
    """Largest change of brightness, contrast and saturation, as a share; 0 leaves colours alone,
    the hue, too."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            len(self.crop) == 2 and min(self.crop) > 0,
            f"augment.crop is {self.crop}: give height and width in px, both above 0",
        )
        low, high = self.scale
        require(0 < low <= high, f"augment.scale is {self.scale}: give 0 < smallest <= largest")
        steps = (high - low) / self.scale_step if self.scale_step > 0 else 0.5
        require(
            abs(steps - round(steps)) < 1e-6,
            f"augment.scale_step is {self.scale_step}: give a number above 0 that divides "
            f"{high - low:g}, the range of augment.scale",
        )

    @property
    def factors(self) -> list[float]:
        """The factors that are drawn from, each as likely (PaddleSeg, ResizeStepScaling)."""
        low, high = self.scale
        return [low + i * self.scale_step for i in range(round((high - low) / self.scale_step) + 1)]
