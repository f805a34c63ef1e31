"""What is on the disk of a recipe: its stages, and what each was asked for."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssld.cli.commands import COMMANDS
from ssld.common.errors import InputError
from ssld.common.files import read_object, write_atomically
from ssld.common.recorded import check_recorded
from ssld.common.settings import flat
from ssld.engine import overwrite
from ssld.engine.overwrite import remove
from ssld.engine.run_folder import LOCK, TEMPORARY

STATE = "recipe.json"
"""What every stage was last started with, before anything was resolved, and from which student."""


@dataclass(frozen=True)
class StagePlace:
    """What is on the disk of a stage.

    A stage that is done anew is put aside until the new one is complete, with what it was asked for
    inside: at any instant it is known which of the two a folder is.
    """

    out: Path
    stage: str
    command: str = ""
    """That makes it, by default the one of its name."""

    @property
    def folder(self) -> Path:
        return self.out / self.stage

    @property
    def asides(self) -> list[Path]:
        """What was put aside, oldest first."""
        return sorted(self.out.glob(f".{self.stage}.old-*"))

    @property
    def begun(self) -> bool:
        return (self.folder / "config.yaml").is_file()

    @property
    def complete(self) -> bool:
        """Whether it is finished and its network is what it exported."""
        facts = _read_json(self.folder / "run.json")
        exported = facts.get("exported")
        if not exported or (self.stage == "fix" and not facts.get("resolution")):
            return False
        try:
            exported = COMMANDS[self.command or self.stage].exported
            file = self.folder / str(exported) / "model.safetensors"
            check_recorded(file)
            return file.is_file()
        except (OSError, InputError):
            return False  # going on writes it again

    def check(self) -> None:
        """
        Raises:
            InputError: a folder that no stage has made is in its place.
        """
        if self.out.exists() and not self.out.is_dir():
            raise InputError(f"out {self.out} is a file: give a folder")
        there = self.folder.is_dir() and {path.name for path in self.folder.iterdir()}
        if self.folder.is_file() or (there and not there <= {TEMPORARY, LOCK}):
            if not self.begun:
                raise InputError(
                    f"{self.folder} is not a run folder (no config.yaml): move it away, or give "
                    "another `out`"
                )

    def prepare(
        self,
        asked: dict[str, Any],
        settings: dict[str, Any],
        *,
        overwrite: bool,
        following: Sequence[StagePlace] = (),
    ) -> str:
        """What is to be done here: complete, going on, from the start, or anew; of what is not
        complete it is noted what it is asked for.

        Args:
            asked: all that decides the result, by full name.
            settings: of the stage, nested.
            following: stages that are done anew if this one is.

        Raises:
            InputError: it was asked for something else, and is not to be overwritten.
        """
        if not self.begun:  # killed before the new one began
            self.put_back()
        state = "from the start"
        if self.begun:
            changed = self.changes(asked)
            if changed and not overwrite:
                raise InputError(
                    f"{self.folder} was made with other settings: {changed}; set them back, use "
                    "another `out`, or redo it and what follows with --overwrite"
                )
            if changed and self.put_back(asked):  # it is the one that was asked for before
                changed = ""
            if changed:
                for place in (self, *following):  # they are redone, too
                    place.check_overwrite(settings)
                self.put_aside()
            state = "anew" if changed else "complete" if self.complete else "going on"
        if state != "complete":
            self.note(asked)
        return state

    def note(self, asked: dict[str, Any]) -> None:
        """Keep what the stage is asked for, before anything is resolved."""
        known = _read_json(self.out / STATE)
        write_atomically(
            self.out / STATE, json.dumps({**known, self.stage: asked}, indent=2) + "\n"
        )

    def changes(self, asked: dict[str, Any]) -> str:
        """What is not as it was asked for, in words; empty where nothing is."""
        known = _read_json(self.out / STATE).get(self.stage)
        if known is None:  # the file is gone: by what the run resolved
            known = self._resolved()
            asked = {key: value for key, value in asked.items() if value is not None}
            known = {key: known.get(key) for key in asked}
        keys = [k for k in sorted({*known, *asked}) if known.get(k) != asked.get(k)]
        if keys == ["start_sha256"]:
            return "the student that it went on from is another one now"
        message = [f"{key} was {known.get(key)!r} and is {asked.get(key)!r}" for key in keys[:4]]
        return "; ".join(message) + (f" and {len(keys) - 4} more" if len(keys) > 4 else "")

    def _resolved(self) -> dict[str, Any]:
        settings = read_object(self.folder / "config.yaml", f"move {self.folder} away")
        return {**flat(settings), **_read_json(self.folder / "run.json")}

    def check_overwrite(self, settings: dict[str, Any]) -> None:
        """
        Args:
            settings: of a stage that is done anew, nested.

        Raises:
            InputError: more than a run would be removed, or what that stage reads.
        """
        if self.begun:
            overwrite.refuse(self.folder, settings)

    def put_aside(self) -> None:
        """Nothing of it is lost until the new one is complete."""
        self.check_overwrite({})
        known = _read_json(self.out / STATE).get(self.stage) or self._resolved()
        write_atomically(self.folder / STATE, json.dumps(known) + "\n")
        self.folder.replace(self.out / f".{self.stage}.old-{len(self.asides):03d}")

    def put_back(self, asked: dict[str, Any] | None = None) -> bool:
        """Take the last one that was put aside in the place of what is not begun, or the one that
        was `asked` for; False where there is none."""
        for aside in reversed(self.asides):
            known = _read_json(aside / STATE)
            if asked is not None and known != asked:
                continue
            if self.begun:
                self.put_aside()
            self.note(known)
            remove(self.folder)
            aside.replace(self.folder)
            return True
        return False

    def forget_asides(self) -> None:
        for aside in self.asides:
            remove(aside)
            if aside.exists():
                print(f"warning: {aside} cannot be removed: look into it", file=sys.stderr)


def _is_state(result: dict[str, Any]) -> bool:
    return all(isinstance(asked, dict) for asked in result.values())


def _read_json(path: Path) -> dict[str, Any]:
    """Empty where there is none.

    Raises:
        InputError: it is damaged.
    """
    advice = "delete it" if path.name == STATE else f"move {path.parent} away"
    try:
        result = read_object(path, advice)
    except FileNotFoundError:
        return {}
    if path.name == STATE and path.parent.name[:1] != "." and not _is_state(result):
        raise InputError(f"{path} is damaged (not what a recipe writes); {advice}")
    return result
