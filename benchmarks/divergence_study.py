"""Which divergence trains a student, and why the Jensen-Shannon divergence needs a warm-up.

    python benchmarks/divergence_study.py --cifar DIR [--steps 500] [--seeds 2] --out docs

DIR holds CIFAR-100 as `cifar100-{train,test}.npz` of lossless sheets (13,000 + 5,000 images of the
official splits). Images are averaged to 16 px so that a run takes half a minute on one CPU thread.
A teacher is trained with labels; its predictions on `VIEWS` fixed augmented views of every training
image are computed once and replayed exactly, view by view (a stored label per view, not per image).
Every student sees the same views in the same order and has the same initial weights per seed.
Writes `divergences.csv` (every run) and `divergences.png` (agreement against learning rate).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from measure import parser, plain, sheets, show, spread, write
from torch import Tensor, nn
from torch.nn import functional as F

from ssld.distill.divergence import js, kl, skewed_js, soft_ce, symmetric_kl

VIEWS, BATCH, SIDE, CLASSES = 8, 128, 16, 100
Loss = Callable[[Tensor, Tensor, float], Tensor]


def warmed_up(share: float) -> Loss:
    """From KL (skew 1) to 4 JS (skew 1/2), linearly over the first `share` of the run."""
    return lambda s, t, done: skewed_js(s, t, max(0.5, 1 - 0.5 * done / share))


LOSSES: dict[str, Loss] = {
    "kl": lambda s, t, _: kl(s, t),
    "soft_ce": lambda s, t, _: soft_ce(s, t),
    "symmetric_kl": lambda s, t, _: symmetric_kl(s, t),
    "js": lambda s, t, _: js(s, t),
    "4 js": lambda s, t, _: 4 * js(s, t),
    "16 js": lambda s, t, _: 16 * js(s, t),
    "skewed .9": lambda s, t, _: skewed_js(s, t, 0.9),
    "skewed .99": lambda s, t, _: skewed_js(s, t, 0.99),
    "kl to 4 js in 30 %": warmed_up(0.3),
    "kl to 4 js in 100 %": warmed_up(1.0),
}


class Block(nn.Module):
    def __init__(self, ins: int, outs: int, stride: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(ins, outs, 3, stride, 1, bias=False)
        self.two = nn.Conv2d(outs, outs, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(outs), nn.BatchNorm2d(outs)])
        self.cut = nn.Conv2d(ins, outs, 1, stride, bias=False) if ins != outs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norms[0](self.one(x)))
        return F.relu(self.cut(x) + self.norms[1](self.two(y)))


def network(width: int) -> nn.Module:
    """A ResNet-8: three stages of one block."""
    w = width
    stem = [nn.Conv2d(3, w, 3, 1, 1, bias=False), nn.BatchNorm2d(w), nn.ReLU()]
    blocks = [Block(w, w, 1), Block(w, 2 * w, 2), Block(2 * w, 4 * w, 2)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * w, CLASSES)]
    return nn.Sequential(*stem, *blocks, *head).to(memory_format=torch.channels_last)


def images(path: Path) -> tuple[Tensor, Tensor]:
    """-> float32 [n, 3, 16, 16] in about -2..2, int64 [n]."""
    pixels, labels, _ = sheets(path)
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float()  # [n, 3, 32, 32]
    return F.avg_pool2d(x, 32 // SIDE) / 64 - 2, torch.from_numpy(labels)


def view(x: Tensor, number: int) -> Tensor:
    """View `number` of all images [n, 3, s, s]: shift by up to 2 px and flip, seeded by number."""
    generator = torch.Generator().manual_seed(number)
    flips = torch.rand(len(x), generator=generator) < 0.5
    x = torch.where(flips[:, None, None, None], x.flip(-1), x)
    padded = F.pad(x, (2, 2, 2, 2))
    top, left = (torch.randint(0, 5, (len(x), 1), generator=generator) for _ in range(2))
    rows = (top + torch.arange(SIDE))[:, None, :, None]
    columns = (left + torch.arange(SIDE))[:, None, None, :]
    sample = torch.arange(len(x))[:, None, None, None]
    return padded[sample, torch.arange(3)[None, :, None, None], rows, columns]


def fit(
    model: nn.Module,
    views: list[Tensor],
    loss: Callable[[Tensor, Tensor, int, float], Tensor],
    *,
    steps: int,
    lr: float,
    seed: int,
) -> None:
    """SGD, momentum 0.9, weight decay 4e-5, 5 % warm-up, cosine."""
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9, weight_decay=4e-5)
    generator, order, epoch = torch.Generator().manual_seed(seed), torch.empty(0).long(), -1
    for step in range(steps):
        if len(order) < BATCH:
            order, epoch = torch.randperm(len(views[0]), generator=generator), epoch + 1
        chosen, order = order[:BATCH], order[BATCH:]
        warm = steps // 20
        rate = (step + 1) / warm if step < warm else 0.5 + 0.5 * np.cos(np.pi * step / steps)
        optimizer.param_groups[0]["lr"] = lr * rate
        model.train()
        logits = model(views[epoch % VIEWS][chosen].contiguous(memory_format=torch.channels_last))
        loss(logits, chosen, epoch % VIEWS, step / steps).mean().backward()
        optimizer.step()
        optimizer.zero_grad()


@torch.no_grad()
def predict(model: nn.Module, x: Tensor) -> Tensor:
    """Log-probabilities [n, classes] in eval mode."""
    model.eval()
    return torch.cat([F.log_softmax(model(part), -1) for part in x.split(500)])


def initial_gradients(targets: Tensor) -> dict[str, float]:
    """Mean norm of d loss / d logits at an untrained student's logits ~ N(0, 0.1²)."""
    norms = {}
    for name, loss in LOSSES.items():
        generator = torch.Generator().manual_seed(0)
        logits = (0.1 * torch.randn(targets.shape, generator=generator)).requires_grad_()
        loss(F.log_softmax(logits, -1), targets, 0.0).sum().backward()
        assert logits.grad is not None
        norms[name] = logits.grad.norm(dim=-1).mean().item()
    return norms


def main() -> None:
    words = parser(__doc__)
    words.add_argument("--cifar", type=Path, required=True)
    words.add_argument("--out", type=Path, required=True)
    words.add_argument("--steps", type=int, default=500)
    words.add_argument("--seeds", type=int, default=2)
    words.add_argument("--lrs", type=float, nargs="+", default=[0.1, 0.4, 1.6])
    words.add_argument("--losses", nargs="+", default=list(LOSSES))
    given = words.parse_args()
    torch.set_num_threads(1)  # such small convolutions gain nothing from a second
    x, y = images(given.cifar / "cifar100-train.npz")
    x_test, y_test = images(given.cifar / "cifar100-test.npz")
    views = [view(x, number) for number in range(VIEWS)]
    torch.manual_seed(0)
    teacher = network(24)
    fit(teacher, views, lambda z, i, _, __: F.cross_entropy(z, y[i], reduction="none"),
        steps=2000, lr=0.2, seed=0)  # fmt: skip
    targets, expected = [predict(teacher, v) for v in views], predict(teacher, x_test)
    top1 = (expected.argmax(-1) == y_test).float().mean().item()
    print(f"teacher: top-1 {top1:.1%} on held-out, "
          f"{(targets[0].argmax(-1) == y).float().mean():.1%} on training images")  # fmt: skip
    gradients = initial_gradients(targets[0][:2000])
    rows: list[dict] = []
    for lr in given.lrs:
        for name in given.losses:
            for seed in range(given.seeds):
                row = one_run(name, lr, seed, given.steps, views, targets, x_test,
                                     expected, y_test)  # fmt: skip
                rows.append({**row, "initial_gradient": round(gradients[name], 5)})
                print(rows[-1], flush=True)
                save(given.out, rows)
    head = ["divergence", "lr", "gradient at start", "agreement@1", "top-1", "KL left"]
    show(head, means(rows))


def one_run(
    name: str, lr: float, seed: int, steps: int, views: list[Tensor], targets: list[Tensor],
    x_test: Tensor, expected: Tensor, y_test: Tensor,
) -> dict:  # fmt: skip
    torch.manual_seed(seed)
    student, start = network(12), time.monotonic()

    def loss(logits: Tensor, chosen: Tensor, number: int, done: float) -> Tensor:
        return LOSSES[name](F.log_softmax(logits, -1), targets[number][chosen], done)

    fit(student, views, loss, steps=steps, lr=lr, seed=seed)
    predicted = predict(student, x_test)
    row = {
        "loss": name,
        "lr": lr,
        "seed": seed,
        "steps": steps,
        "agreement1": round((predicted.argmax(-1) == expected.argmax(-1)).float().mean().item(), 4),
        "top1": round((predicted.argmax(-1) == y_test).float().mean().item(), 4),
        "kl": round(kl(predicted, expected).mean().item(), 4),
        "js": round(js(predicted, expected).mean().item(), 5),
        "seconds": round(time.monotonic() - start),
    }
    return row


def save(out: Path, rows: list[dict]) -> None:
    write(out / "divergences.csv", rows)
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name in dict.fromkeys(row["loss"] for row in rows):
        lrs = sorted({row["lr"] for row in rows if row["loss"] == name})
        runs = [[r for r in rows if (r["loss"], r["lr"]) == (name, lr)] for lr in lrs]
        mean = [100 * statistics.mean(r["agreement1"] for r in run) for run in runs]
        axes.plot(lrs, mean, marker="o", label=name)
    axes.set_xscale("log", base=4)
    axes.set_xlabel(f"learning rate (batch {BATCH})")
    axes.set_ylabel("agreement@1 with the teacher, held-out, %")
    plain(axes, "both")
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(out / "divergences.png", dpi=110)


def means(rows: list[dict]) -> Iterator[list[str]]:
    """Over seeds, for each divergence and rate."""
    for name, lr in dict.fromkeys((row["loss"], row["lr"]) for row in rows):
        runs = [row for row in rows if (row["loss"], row["lr"]) == (name, lr)]
        cells = [
            spread([scale * run[metric] for run in runs], 2)
            for metric, scale in (("agreement1", 100), ("top1", 100), ("kl", 1))
        ]
        yield [name, str(lr), f"{runs[0]['initial_gradient']:.4f}", *cells]


if __name__ == "__main__":
    main()
