"""Transfer: `accelerate launch -m downstream.transfer --config F.yaml --backbone NAME`.

SSLD section 4.6: "We finetune the entire network using the weights of the pre-trained network as
initialization." A fresh classifier on the backbone, cross-entropy, all of it on the one loop. What
frozen features are worth is measured before the first step (probe.json) and while training, by
nearest neighbours and a linear classifier. `held_out.npz` says which held-out images the exported
network gets right; `ssld ab` reads it.
"""

from __future__ import annotations

from downstream.transfer.config import TransferConfig


def transfer(config: TransferConfig) -> None:
    """Fine-tune a backbone as a classifier, then export and report into `config.out`.

    Raises:
        InputError: bad settings, sources or launcher; nothing was written then, but the manifests
            of a known data set.
        Interrupted: see `ssld.engine.loop.train`.
    """
    from downstream.transfer.task import Transfer, open_network, probe_before
    from ssld.distill.setup import Setup
    from ssld.engine.loop import train

    setup = Setup(config)  # type: ignore[arg-type]  # no student, which only `open_student` reads
    network = open_network(setup, config)
    setup.describe({"student": network})
    run = setup.start(network)
    probe_before(run, network)
    task = Transfer(
        network.num_classes,
        label_smoothing=config.label_smoothing,
        mixup=config.mixup,
        cutmix=config.cutmix,
    )
    train(run, task, network)
