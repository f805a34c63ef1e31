"""Names of tensors from Paddle's to timm's, with every tensor accounted for.

Weights of convolutions have the same layout in both; those of linear layers are [in, out] in Paddle
and are transposed by name, never by shape, for square ones would go unnoticed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from torch import Tensor, nn

# Paddle's `Dropout(0.2, mode="downscale_in_infer")` multiplies by the share that training keeps,
# when it evaluates: a factor on the next layer's weight (not on its bias).
KEPT_BY_DROPOUT = 0.8
_LEAVES = {"_mean": "running_mean", "_variance": "running_var"}
Weights = dict[str, Tensor]
Target = str | Callable[[re.Match[str]], str]


class DoesNotFit(ValueError):
    """The weights are not those of the architecture: one clause, what has no place."""


def renamed(
    weights: Mapping[str, Tensor], modules: Mapping[str, Target], *, linear: str
) -> Weights:
    """Tensors under timm's names.

    Args:
        modules: patterns of Paddle's module names, and what timm calls them: a template of
            `re.Match.expand`, or a function of the match. The first that fits counts.
        linear: the classifier, whose weight is transposed.

    Raises:
        DoesNotFit: a tensor that no pattern knows, two with the same new name, or no classifier.
    """
    result: Weights = {}
    for name, tensor in weights.items():
        module, _, leaf = name.rpartition(".")
        new = f"{_new_name(name, module, modules)}.{_LEAVES.get(leaf, leaf)}"
        if new in result:
            raise DoesNotFit(f"two tensors would be {new!r}, one of them {name!r}")
        result[new] = tensor
    # [in, out] -> [out, in]
    result[f"{linear}.weight"] = _of(result, f"{linear}.weight").t().contiguous()
    return result


def _new_name(name: str, module: str, modules: Mapping[str, Target]) -> str:
    for pattern, target in modules.items():
        match = re.fullmatch(pattern, module)
        if match:
            try:
                return match.expand(target) if isinstance(target, str) else target(match)
            except (IndexError, KeyError) as error:
                raise DoesNotFit(f"there is no block for {name!r}") from error
    raise DoesNotFit(f"there is no place for {name!r}")


def blocks_of(model: nn.Module, *names: str) -> list[str]:
    """Full names of the blocks of all stages, in order: Paddle counts them through."""
    return [f"{x}.{j}" for x in names for j, _ in enumerate(model.get_submodule(x).children())]


def linear_to_conv(weights: Weights, pattern: str) -> None:
    """[in, out] -> [out, in, 1, 1], in place, of the linear layers whose names match."""
    for name, weight in weights.items():
        if re.fullmatch(rf"{pattern}\.weight", name):
            if weight.ndim != 2:
                raise DoesNotFit(f"{name!r} is no linear layer")
            weights[name] = weight.t()[:, :, None, None].contiguous()


def scale(weights: Weights, name: str, factor: float, shift: float = 0.0) -> None:
    """factor x + shift, in place."""
    weights[name] = _of(weights, name) * factor + shift


def _of(weights: Weights, name: str) -> Tensor:
    if name not in weights:
        raise DoesNotFit(f"{name!r} is missing")
    return weights[name]
