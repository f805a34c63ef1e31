"""`ssld sed`, also `accelerate launch -m downstream.sed --config F.yaml --backbone NAME`."""

from __future__ import annotations

from downstream.dense.start import open_processes
from downstream.detection.command import model_for, run_of, sources_of
from downstream.sed.batches import LabeledAndUnlabeled
from downstream.sed.config import SedConfig
from downstream.sed.consistency import require_equivalent_levels
from downstream.sed.model import SedModel
from downstream.sed.task import SedTask
from downstream.sed.unlabeled import held_out_sums, open_unlabeled
from ssld.engine.loop import train
from ssld.engine.processes import Processes, on_main


def sed(config: SedConfig) -> None:
    """Train on boxes and on images without any, then export and report into `config.out`.

    Raises:
        InputError: bad settings, sources, backbone or launcher; nothing was written then.
    """
    accelerator = open_processes(config)
    sources = sources_of(config)
    unlabeled, reports = open_unlabeled(accelerator, list(config.data.unlabeled), sources)
    config, model = model_for(config, sources, SedModel)
    if config.consistency.scale_weight:
        require_equivalent_levels(model.model)
    order = LabeledAndUnlabeled(
        [len(x) for x in sources.train],
        [len(x) for x in unlabeled],
        pass_size=config.batch_size // config.accumulate,
        per_labeled=config.data.unlabeled_per_labeled,
        seed=config.seed,
    )
    work = 1 + config.data.unlabeled_per_labeled * config.consistency.work
    run = run_of(
        config, accelerator, sources, model,
        unlabeled=unlabeled, reports=reports, order=order, work=work,
    )  # fmt: skip
    held_out = on_main(accelerator, held_out_sums, sources.val)
    train(run, SedTask(sources, unlabeled, config, held_out), model)


def check_unlabeled(processes: Processes, config: SedConfig) -> None:
    """Refuse unlabeled images that `sed` would refuse, before what is trained ahead of it.

    Raises:
        InputError: see `open_unlabeled`.
    """
    open_unlabeled(processes, list(config.data.unlabeled), sources_of(config))
