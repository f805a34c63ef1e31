"""Transfer: `accelerate launch -m downstream.transfer --config F.yaml --backbone NAME`.

SSLD section 4.6: "We finetune the entire network using the weights of the pre-trained network as
initialization." A fresh classifier on the backbone, cross-entropy, all of it on the one loop. What
frozen features are worth is measured before the first step (probe.json) and while training, by
nearest neighbours and a linear classifier. `held_out.npz` says which held-out images the exported
network gets right; `ssld ab` reads it.
"""

from __future__ import annotations

from downstream.transfer.config import TransferConfig
from downstream.transfer.task import Transfer, open_network, probe_before
from ssld.distill.setup import describe, open_data, start_run
from ssld.engine.loop import train


def transfer(config: TransferConfig) -> None:
    """Fine-tune a backbone as a classifier, then export and report into `config.out`.

    Raises:
        InputError: bad settings, sources or launcher; nothing was written then, but the manifests
            of a known data set.
        Interrupted: see `ssld.engine.loop.train`.
    """
    data = open_data(config)
    network, facts = open_network(data, config)
    facts |= describe(data.accelerator, {"student": network})
    run = start_run(data, network, facts)
    probe_before(run, network)
    train(run, Transfer.of(config, network.num_classes), network)
