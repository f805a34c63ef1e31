"""From words to a command's exit code; from an exception to one sentence."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from ssld import __version__
from ssld.cli.commands import COMMANDS, GROUPS, Command, work_of
from ssld.cli.help import help_of
from ssld.cli.parse import parse, sentence_of
from ssld.common import streams
from ssld.common.errors import InputError, Interrupted, did_you_mean
from ssld.common.settings_file import read_settings

EXIT_BAD_INPUT = 2
EXIT_TRY_AGAIN = 75
EXIT_INTERRUPTED = 130
HELP = ("-h", "--help")


@streams.whole
def main(argv: Sequence[str] | None = None, *, launched: bool = False) -> int:
    """Run `ssld COMMAND ...`.

    Args:
        argv: by default what this process was given.
        launched: as a module of its own, by accelerate or torchrun perhaps.

    Returns the exit code: what the command returns, else 0; 2 for what must be mended (one sentence
    on stderr; the traceback too when the environment variable SSLD_DEBUG is 1); 75 when stopped by
    a signal or a lost process, `--resume` or the same command goes on; 130 when interrupted without
    a checkpoint; 141 when nobody reads the output any more.
    """
    words = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    if words[0] in HELP:
        print(_usage("", "COMMAND"))
        return 0
    if words[0] == "--version":
        print(__version__)
        return 0
    name = words.pop(0)
    below = [x.removeprefix(f"{name} ") for x in COMMANDS if x.startswith(f"{name} ")]
    if below and words and words[0] in below:
        name = f"{name} {words.pop(0)}"
    elif below and (not words or words[0] in HELP):
        print(_usage(f"{name} ", "[COMMAND]" if name in COMMANDS else "COMMAND"))
        if not words or name not in COMMANDS:
            return 0
    elif name not in COMMANDS or (below and not _takes(COMMANDS[name], words[0])):
        word, known = (f"{name} {words[0]}", below) if below else (name, [*COMMANDS, *GROUPS])
        hint = did_you_mean(word.rpartition(" ")[2], known)
        hint = hint or f"; known: {', '.join(x for x in known if ' ' not in x)}"
        print(f"error: unknown command {word!r}{hint}", file=sys.stderr)
        return EXIT_BAD_INPUT
    return _run(name, COMMANDS[name], words, launched)


def launch(name: str) -> int:
    """`python -m MODULE ...` of the command `name`, and the same under a launcher."""
    return main([name, *sys.argv[1:]], launched=True)


def _takes(command: Command, word: str) -> bool:
    """Whether a word is an option, or the recipe that a command may begin with."""
    return word.startswith("-") or bool(command.section and Path(word).suffix)


def _usage(group: str, what: str) -> str:
    summaries = {name: command.summary for name, command in COMMANDS.items()} | GROUPS
    below = {
        x.removeprefix(group): summary for x, summary in summaries.items() if x.startswith(group)
    }
    lines = [f"  {name:<14}{summary}" for name, summary in below.items() if " " not in name]
    return f"usage: ssld {group}{what} [--help] ...\n\ncommands:\n" + "\n".join(lines)


def _run(name: str, command: Command, words: list[str], launched: bool) -> int:
    asked = next((i for i, word in enumerate(words) if word in HELP), None)
    if asked is not None:
        config_class = resolve_name(command.config)
        print(help_of(f"ssld {name}", config_class, command.positional, words[asked + 1 :]))
        return 0

    def do() -> object:
        given = resolve_name(command.words)(words) if command.words else words
        settings = None
        if command.section and given and not given[0].startswith("-"):
            settings, given = _section(given[0], command.section), given[1:]
        config = parse(
            f"ssld {name}",
            resolve_name(command.config),
            _named(given, command.positional),
            settings=settings,
            defaults=resolve_name(command.defaults) if command.defaults else None,
        )
        if launched:
            start_asked_for_processes()
        return work_of(command, config)

    return exit_code_of(do, resumes=command.exported is not None)


@streams.whole
def exit_code_of(do: Callable[[], object], *, resumes: bool = True) -> int:
    """Do something that may raise what a user should see as one sentence; see `main`.

    Args:
        resumes: it is a training run; anything else goes on when it is given again.
    """
    goes_on = "go on with --resume" if resumes else "the same command goes on"
    try:
        _listen_to_sigterm(
            f"SIGTERM{' before or after the training loop' if resumes else ''}; {goes_on}"
        )
        code = do()  # a result is for Python; a command's answer is an exit code, or nothing
        leave_processes()
        return code if isinstance(code, int) else 0
    except (InputError, Interrupted, OSError) as error:
        if isinstance(error, BrokenPipeError) and streams.reader_left(sys.stdout):
            raise
        if os.environ.get("SSLD_DEBUG") == "1":
            raise
        stopped = isinstance(error, Interrupted)
        rank = os.environ.get("RANK", "0")
        where = "" if rank == "0" else f" (process {rank})"
        print(f"{'stopped' if stopped else 'error'}{where}: {sentence_of(error)}", file=sys.stderr)
        return EXIT_TRY_AGAIN if stopped else EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print(f"interrupted: {goes_on}", file=sys.stderr)
        return EXIT_INTERRUPTED


def _named(words: list[str], positional: Sequence[str]) -> list[str]:
    """`A B --out X` as `--first A --second B --out X`; words that no setting takes stay."""
    options: list[str] = []
    for setting in positional:
        if setting.endswith("*"):
            taken = []
            while words and not words[0].startswith("-"):
                taken.append(words.pop(0))
            options += [f"--{setting[:-1]}", json.dumps(taken)] if taken else []
        elif words and not words[0].startswith("-"):
            options += [f"--{setting}", words.pop(0)]
    return options + words


def _section(file: str, section: str) -> tuple[str, dict[str, Any]]:
    """The settings of one stage of a recipe, as `parse` wants them."""
    tree = read_settings(Path(file))
    if not isinstance(tree.get(section), dict):
        raise InputError(f"{file} has no section {section}: give a recipe, or settings by --config")
    return f"{file}, {section}", {"out": f"{tree.get('out', 'runs')}/{section}", **tree[section]}


def _listen_to_sigterm(message: str) -> None:
    """Outside the training loop, which writes a checkpoint first (`ssld/engine/preemption.py`)."""

    def stop(*_: object) -> None:
        raise Interrupted(message)

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, stop)


def start_asked_for_processes() -> None:
    """Replace this process by torchrun with as many processes as accelerate was asked for.

    `accelerate launch --cpu --num_processes N` starts one, whatever N is, and says nothing (1.15:
    `launch_command` takes the multi-process launcher only with `--multi_gpu`): a run that was asked
    for on N processes must not quietly be another one. Does nothing
    anywhere else: alone, under torchrun, on GPUs.

    Raises:
        InputError: the number that was asked for cannot be found out.
    """
    # accelerate sets MASTER_ADDR when it was asked for several, and then starts one all the same.
    alone = "MASTER_ADDR" in os.environ and "WORLD_SIZE" not in os.environ
    if not alone or os.environ.get("ACCELERATE_USE_CPU", "").lower() != "true":
        return
    module = sys.modules["__main__"].__spec__
    number = _asked_for()
    if number is None or module is None:
        raise InputError(
            "accelerate launch --cpu starts one process whatever its configuration says; use "
            "torchrun --nproc_per_node N -m ssld.distill"
        )
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(number)]
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *torchrun, "-m", module.name, *sys.argv[1:]])


def leave_processes() -> None:
    """End the process group, where there is one; torch is not imported for it."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.distributed.is_available():
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def _asked_for() -> int | None:
    """--num_processes of the `accelerate launch` that started this process."""
    import psutil

    words = psutil.Process(os.getppid()).cmdline()
    for i, word in enumerate(words):
        name, _, value = word.partition("=")
        if name.replace("-", "_") == "__num_processes":
            value = value or (words[i + 1] if i + 1 < len(words) else "")
            return int(value) if value.isdecimal() else None
    return None
