"""Stands in for `ssld recipe` in `ssld ablate`: writes run folders without training.

What it is to do besides is said by files in the folder that the environment variable FAKE_RECIPE
names, `NAME.what` for the trial NAME; it notes every start in `starts` there.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import yaml

ASKED = Path(os.environ["FAKE_RECIPE"])
SECONDS = 60
"""After which a wait counts as hanging; longer than a test waits for the end of this process."""


def asked(what: str) -> bool:
    return (ASKED / f"{CELL}.{what}").exists()


def once(what: str) -> bool:
    found = asked(what)
    if found:
        (ASKED / f"{CELL}.{what}").unlink()
    return found


def wait(path: Path) -> None:
    end = time.monotonic() + SECONDS
    while not path.exists():
        if time.monotonic() > end:
            print(f"error: nobody wrote {path}")
            sys.exit(2)
        time.sleep(0.01)


def essence(settings: dict) -> str:
    """Without `data.workers`, which changes no result."""
    data = {k: v for k, v in (settings.get("data") or {}).items() if k != "workers"}
    return json.dumps({**settings, "data": data})


def write(folder: Path, stage: str, recipe: dict) -> None:
    """A finished run whose numbers depend on all settings; one of other settings is redone."""
    begun = (folder / "settings").is_file()  # else it was killed before
    if begun and (folder / "settings").read_text() != essence(recipe[stage]):
        if "--overwrite" not in sys.argv:
            print("error: made with other settings")
            sys.exit(2)
        shutil.rmtree(folder)
    numbers = random.Random(json.dumps([stage, recipe]))
    folder.mkdir(exist_ok=True)
    (folder / "settings").write_text(essence(recipe[stage]))
    train = {"kind": "train", "step": 4, "epoch": 2.0, "seconds": time.monotonic()}
    evaluated = {"kind": "eval", "step": 2, "epoch": 1.0}
    evaluated |= {x: numbers.random() for x in ("top1", "agreement1", "divergence", "knn")}
    lines = [{**train, "images_per_second": x} for x in (10.0, 30.0, 20.0)]
    lines += [evaluated, {**evaluated, "step": 4, "epoch": 2.0, "top1": 1.0}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    facts = {"steps": 4, "images": {"a": 30, "b": 6}, "exported": {"step": 2}}
    facts["teacher_top1"] = {"hits": 3, "images": 4}
    if stage == "fix":
        facts["resolution"] = {"chosen": 40, "metrics": {"size": 40, "top1": 0.5}}
    (folder / "run.json").write_text(json.dumps(facts))


def stop(*_: object) -> None:
    (ASKED / f"{CELL}.checkpoint").touch()
    sys.exit(75)


def main() -> None:
    recipe = yaml.safe_load(Path(sys.argv[1]).read_text())
    signal.signal(signal.SIGTERM, stop)
    start = {"trial": CELL, "pid": os.getpid(), "words": sys.argv[1:]}
    start |= {"cores": sorted(os.sched_getaffinity(0)), "threads": os.environ["OMP_NUM_THREADS"]}
    with (ASKED / "starts").open("a") as file:
        file.write(json.dumps(start) + "\n")
    (ASKED / f"{CELL}.begun").touch()
    if once("dies"):
        os.kill(os.getpid(), signal.SIGKILL)
    if asked("meets"):
        wait(ASKED / (ASKED / f"{CELL}.meets").read_text())
    if asked("waits"):
        wait(ASKED / "go on")
    if asked("again"):
        sys.exit(75)
    for stage in recipe:
        if asked(f"fails-{stage}"):
            print("error: an old one\nerror: data.labeled x: no such folder; name one")
            sys.exit(2)
        write(OUT / stage, stage, recipe)


OUT = Path(sys.argv[3])
CELL = OUT.name
if __name__ == "__main__":
    main()
