"""The second stage: `accelerate launch -m ssld.finetune --run RUN --out OUT [--a.b value ...]`.

Cui et al. 2021 (SSLD), section 4.2: "for further improvement, we finetune the student with only
labeled data for extra 30 epochs". The labeled *set*: the reference implementation keeps the
teacher's predictions as targets there; `targets: human` takes the words literally. All else is as
in the run that it goes on from, at a hundredth of its learning rate (`ssld/distill/parent_run.py`).
"""

from __future__ import annotations

from ssld.distill.parent_run import open_start, prepare
from ssld.distill.stage_config import FinetuneConfig


def finetune(config: FinetuneConfig) -> None:
    """Train a run's student on, on the labeled set; export and report into `config.out`.

    Raises:
        InputError: a run that has not finished, bad settings or sources; nothing was written then.
    """
    from ssld.engine.loop import train

    setup, student, teacher, digest, task = prepare(config, open_start(config.run))
    run = setup.start(student, teacher=teacher, teacher_sha256=digest)
    train(run, task, student)
