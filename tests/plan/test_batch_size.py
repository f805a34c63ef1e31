"""The search for the largest batch, with a limit that is known."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from ssld.plan import batch_size


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 13, 64, 100, 1000, 5000, 20_000])
@pytest.mark.parametrize("start", [1, 8, 100, 4096])
def test_trying_comes_within_an_eighth(monkeypatch, limit, start):
    tried: list[int] = []

    def fits(_, count: int) -> bool:
        tried.append(count)
        return count <= limit

    monkeypatch.setattr(batch_size, "_fits", fits)
    found = batch_size._tried(None, start)  # type: ignore[arg-type]
    assert found in tried and limit - limit / 8 - 1 < found <= limit
    assert len(tried) < 25


def test_nothing_fits(monkeypatch):
    monkeypatch.setattr(batch_size, "_fits", lambda *_: False)
    assert batch_size._tried(None, 64) == 0  # type: ignore[arg-type]


def test_deriving_goes_by_what_twice_the_images_need(monkeypatch):
    """1000 bytes of an own process for 10 images, 3000 for 20: 200 an image."""
    run = SimpleNamespace(world_size=2)

    class Needs:
        def __init__(self) -> None:
            self.seen = [1000]

        def __enter__(self) -> list[int]:
            return self.seen

        def __exit__(self, *_: object) -> None:
            pass

    peaks = iter([1000, 3000])

    def step(count: int) -> None:
        assert count in (10, 20)
        needs[-1].seen.append(next(peaks))

    needs: list[Needs] = []
    monkeypatch.setattr(batch_size, "_highest", lambda: needs.append(Needs()) or needs[-1])
    bench = SimpleNamespace(run=run, try_step=step, least_bytes=48)
    monkeypatch.setattr(batch_size, "free_bytes", lambda: 40_000)
    found, image = batch_size._derived(bench, 10)  # type: ignore[arg-type]
    assert found == 20 + 0.8 * 20_000 / 200  # half of what is free belongs to the other process
    assert image == 200 / 2**20
