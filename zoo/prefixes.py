"""Names of tensors without what wrappers put before them: DistributedDataParallel's `module.`,
torch.compile's `_orig_mod.`, the `state_dict.` and `model.` of a training script's checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from zoo.errors import InputError

Value = TypeVar("Value")

WRAPPERS = (
    *("module", "_orig_mod", "state_dict", "model_state_dict", "model", "net", "network"),
    *("student", "Student", "teacher", "Teacher", "ema", "ema_model", "model_ema"),
    *("state_dict_ema", "ema_state_dict", "averaged"),
)
_COUNTERS = ("n_averaged", "num_updates")  # of torch's AveragedModel


def unwrapped(weights: Mapping[str, Value], where: str) -> dict[str, Value]:
    """The same tensors by the names that the network itself has. A prefix goes where all have it;
    what is inside of names, `_orig_mod` of a part that was compiled by itself, goes everywhere.

    Raises:
        InputError: there are several networks in it, two tensors come to the same name.
    """
    tensors = dict(weights)
    while True:
        tensors = {name: x for name, x in tensors.items() if name not in _COUNTERS}
        first = {name.partition(".")[0] for name in tensors}
        if not first or not first <= set(WRAPPERS) or any("." not in name for name in tensors):
            break
        if len(first) > 1:
            raise InputError(
                f"{where} holds {len(first)} networks ({', '.join(sorted(first))}): write a file "
                "with the tensors of the one that you want"
            )
        tensors = {name.partition(".")[2]: x for name, x in tensors.items()}
    renamed = {name.replace("._orig_mod.", "."): x for name, x in tensors.items()}
    if len(renamed) < len(tensors):
        raise InputError(f"{where} has two tensors of the same name but for '_orig_mod.'")
    return renamed
