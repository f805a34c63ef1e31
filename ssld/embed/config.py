"""The settings of `ssld embed`."""

from __future__ import annotations

from dataclasses import dataclass

from ssld.common.paths import check_file, check_inputs
from ssld.common.settings import (
    NonNegativeInt,
    OneOrSeveral,
    PositiveInt,
    Precision,
    Settings,
    Share,
    require,
)


@dataclass(frozen=True)
class EmbedConfig(Settings):
    """`ssld embed --model M --data SOURCE --out F.parquet`: the pooled features of every image,
    what the network's last layer makes classes of."""

    model: str
    """timm name, `hf-hub:` or `local-dir:` id, run folder or exported model folder."""
    data: OneOrSeveral
    """Sources of images; labels are not read."""
    out: str
    """Parquet file with a row an image: `source`, `sample_id`, and `features`, float32."""
    batch_size: PositiveInt = 256
    """Images per forward pass."""
    workers: NonNegativeInt = 4
    """Loader processes."""
    precision: Precision = "fp32"
    """Number format of the forward pass."""
    max_unreadable: Share = 0.1
    """Stop when more than this share of a source's files cannot be read."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(self.data), "data is empty: name a source of images")


def check(config: EmbedConfig) -> None:
    """
    Raises:
        InputError: a source or weights are not there, or `out` is a file that is not replaced.
    """
    check_inputs(config)
    check_file("out", config.out, "embeddings")
