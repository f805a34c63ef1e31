"""Pooled features of every image of some sources: `ssld embed --model M --data SOURCE --out FILE`.

The file has them in the order of the sources; images that cannot be read are left out. A row group
is a batch, so that memory does not grow with the images.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from ssld.common.errors import InputError
from ssld.common.files import write_atomically
from ssld.data.loading import Batch, ViewBatches, eval_batches
from ssld.data.sources import open_source
from ssld.data.transforms import eval_view
from ssld.data.unreadable import Unreadables
from ssld.embed.config import EmbedConfig
from ssld.models.classifier import Classifier
from ssld.models.opening import open_network
from ssld.models.teacher import autocast


def embed(config: EmbedConfig) -> None:
    """Write the features.

    Raises:
        InputError: no such network or images, features that are not finite.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if config.precision == "fp16" and device.type == "cpu":
        raise InputError("precision fp16 needs a GPU; use bf16 or fp32")
    network = _open(config.model).to(device).eval()
    sources = [open_source(path) for path in config.data]
    unreadables = Unreadables(sources, config.max_unreadable)
    batches = eval_batches(
        ViewBatches(sources, eval_view(network)),
        batch_size=config.batch_size,
        workers=config.workers,
        device=device,
        unreadables=unreadables,
        description="embed",
    )
    names = np.repeat(config.data, [len(source) for source in sources])
    tables = _tables(network, batches, names, config.precision)
    size = pa.list_(pa.float32(), network.feature_size)
    schema = pa.schema({"source": pa.string(), "sample_id": pa.string(), "features": size})
    written = 0

    def write(file: BinaryIO) -> None:
        nonlocal written
        with pq.ParquetWriter(file, schema) as writer:
            for source, ids, features in tables:
                flat = pa.array(features.ravel())
                rows = pa.FixedSizeListArray.from_arrays(flat, type=size)
                writer.write_table(pa.table([source, ids, rows], schema=schema))
                written += len(ids)

    write_atomically(Path(config.out), write)
    left_out = f", {unreadables.count} could not be read" if unreadables.count else ""
    print(f"{config.out}: {network.feature_size} features of {written} images{left_out}")


def _open(model: str) -> Classifier:
    folder = Path(model).is_dir()
    return open_network(
        "model",
        arch=None if folder else model,
        pretrained=True,
        checkpoint=model if folder else None,
    )


def _tables(
    network: Classifier, batches: Iterable[Batch], names: np.ndarray, precision: str
) -> Iterator[tuple[list[str], list[str], np.ndarray]]:
    """Sources, ids and features, float32 [b, d], of the images of each batch that can be read.

    Args:
        names: the source of each image of all batches.
    """
    start = 0
    for batch in batches:
        seen = (batch.weight > 0).nonzero()[:, 0].tolist()
        with torch.inference_mode(), autocast(batch.images.device, precision):
            features = network.features(batch.images).float().cpu().numpy()[seen]
        if not np.isfinite(features).all():
            raise InputError(
                "the model's features are not finite (NaN or infinite) for some of these images: "
                "check the weights, or take precision fp32 or bf16 where it is fp16"
            )
        own = names[start : start + len(batch.ids)]
        yield own[seen].tolist(), [batch.ids[i] for i in seen], features
        start += len(batch.ids)
