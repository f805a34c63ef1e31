"""`plan` on two processes of which one runs out of memory first: both come to the same end."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import pytest
import sabotage
import torch


def try_batches(most: int, error: type[RuntimeError], said: str) -> None:
    """Batches are tried as on a GPU, and this process has memory for `most` images: it runs out in
    the last layer, when the other is waiting in no batch norm any more, or would be."""
    from ssld.plan import batch_size
    from ssld.plan.measure import Bench

    begin = Bench.__init__

    def watched(bench: Any, *args: Any) -> None:
        begin(bench, *args)
        modules = list(bench.trainer.student.model.modules())
        norms = [m for m in modules if isinstance(m, torch.nn.BatchNorm2d)]

        def look(_: object, inputs: tuple[torch.Tensor]) -> None:
            if len(inputs[0]) > most:
                raise error(said)

        norms[1].register_forward_pre_hook(look)

    Bench.__init__ = watched  # type: ignore[method-assign]
    batch_size._can_try = lambda _: True


def planned(colours, teacher_file, folder, harm, **changes) -> tuple[list[int], list[str], dict]:
    settings = {
        "out": folder / "run",
        "json": folder / "plan.json",
        "seconds": 0.01,
        "images": 8,
        "steps": 2,
        "batch_size": 8,
        "student.arch": "test_resnet",
        "augment.size": 32,
        "teacher.checkpoint": teacher_file,
        "teacher.verify": "false",
        "data.unlabeled": colours / "unlabeled",
        "data.workers": 0,
        "trackers": "[]",
        **changes,
    }
    words = ["plan", *(f"--{key}={value}" for key, value in settings.items())]
    started = sabotage.ranks(words, folder / "said", harm)
    codes = [process.end() for process in started]
    file = folder / "plan.json"
    found = json.loads(file.read_text()) if file.exists() else {}
    return codes, [process.words for process in started], found


OUT_OF_MEMORY = partial(try_batches, error=torch.OutOfMemoryError, said="GPU is full")
CUDNN = partial(try_batches, error=RuntimeError, said="CUDNN_STATUS_ALLOC_FAILED")


@pytest.mark.parametrize("sync", ["true", "false"])
def test_both_agree_on_what_fits_the_smaller(colours, teacher_file, tmp_path, sync):
    harm = [[partial(OUT_OF_MEMORY, 40)], [partial(CUDNN, 11)]]
    codes, words, found = planned(
        colours, teacher_file, tmp_path, harm, **{"sync_batch_norm": sync}
    )
    assert codes == [0, 0], words
    assert 2 * 9 < found["memory"]["largest_batch"] <= 2 * 11
    assert found["memory"]["how"] == "tried, to within an eighth"


def test_a_batch_that_one_cannot_hold_is_said_by_both(colours, teacher_file, tmp_path):
    harm = [[partial(OUT_OF_MEMORY, 40)], [partial(OUT_OF_MEMORY, 3)]]
    codes, words, _ = planned(colours, teacher_file, tmp_path, harm)
    assert codes == [2, 2], words
    for said in words:
        assert "batch_size is 8, which does not fit into memory; about 6 is the most" in said


def test_another_failure_of_one_ends_both(colours, teacher_file, tmp_path):
    other = partial(try_batches, 11, RuntimeError, "sizes do not match")
    codes, words, _ = planned(
        colours, teacher_file, tmp_path, [[partial(OUT_OF_MEMORY, 40)], [other]]
    )
    assert codes[0] == 2 and "failed on another process" in words[0]
    assert codes[1] not in (0, 2) and "sizes do not match" in words[1]
