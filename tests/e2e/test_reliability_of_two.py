"""What happens to one run of two processes: each ends in bounded time, and nothing is lost."""

from __future__ import annotations

import json
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sabotage
from case import STEPS, TRY_AGAIN, Case, assert_same, lines
from sabotage import at_step, sigkill


def both(run: Case, *words: str, harm=((), ())) -> list[sabotage.Started]:
    started = sabotage.ranks([*run.command, *words], run.said, harm)
    for process in started:
        process.end()
    return started


WORKER = {"data.workers": 1}


@pytest.fixture(scope="module")
def undisturbed_pair(case) -> dict[str, Any]:
    """With a loader process each; some others have none."""
    run = case(**WORKER)
    started = both(run)
    assert [p.process.exitcode for p in started] == [0, 0], started[0].words + started[1].words
    return run.outcome()


def test_sigkill_of_both_processes(case, undisturbed_pair):
    run = case()
    for number, step in enumerate((7, 13, 14)):
        harm = [[partial(at_step, step, sigkill)]] * 2
        words = ["--resume", f"--data.workers={number % 2}"] if number else []
        for process in both(run, *words, harm=harm):
            assert process.process.exitcode in (-signal.SIGKILL, TRY_AGAIN)
    assert [p.process.exitcode for p in both(run, "--resume")] == [0, 0]
    assert_same(run.outcome(), undisturbed_pair)


def test_one_of_two_processes_is_killed_or_asked_to_stop(case, undisturbed_pair):
    run, resume = case(**WORKER), []
    # A loader process of the one that is killed keeps its connections open for 5 s: once is enough.
    for killed, step, workers in ((0, 7, 1), (1, 13, 0)):
        harm: list[list[sabotage.Harm]] = [[], []]
        harm[killed] = [partial(at_step, step, sigkill)]
        start = time.monotonic()
        other = both(run, *resume, f"--data.workers={workers}", harm=harm)[1 - killed]
        assert time.monotonic() - start < 60
        assert other.process.exitcode == TRY_AGAIN, other.words
        assert "another process of this run is gone" in other.words and "--resume" in other.words
        resume = ["--resume"]
    harm = [[], [partial(at_step, 17, partial(sabotage.signal_group, signal.SIGTERM))]]
    started = both(run, *resume, harm=harm)
    assert [p.process.exitcode for p in started] == [TRY_AGAIN, TRY_AGAIN]
    assert "the checkpoint of step 18 is written" in started[0].words
    assert [p.process.exitcode for p in both(run, *resume, "--data.workers=0")] == [0, 0]
    assert_same(run.outcome(), undisturbed_pair)


def samples(files: list[Path]) -> dict[int, list[str]]:
    """Step -> sample ids in their global order: processes take interleaved positions."""
    parts = [dict(map(json.loads, file.read_text().splitlines())) for file in files]
    return {
        step: [name for row in zip(*(p[step] for p in parts), strict=True) for name in row]
        for step in parts[0]
    }


def test_another_number_of_processes_takes_the_same_samples(case, tmp_path):
    whole, changed = case(), case()
    names = [tmp_path / name for name in ("whole", "one", "two.0", "two.1")]
    notes = [partial(sabotage.note_samples, str(name)) for name in names]
    assert whole.start(notes[0])[0] == 0
    assert changed.start(notes[1], partial(at_step, 12, sigkill))[0] == -signal.SIGKILL
    both(changed, "--resume", harm=[[notes[2]], [notes[3]]])
    expected, first, second = samples(names[:1]), samples(names[1:2]), samples(names[2:])
    assert list(second) == list(range(12, STEPS))
    assert {step: expected[step] for step in first} == first
    assert {step: expected[step] for step in second} == second
    losses = [
        [x["loss"] for x in lines(run.out) if x["kind"] == "train"] for run in (whole, changed)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)
