"""The errors that a user sees as one sentence (`ssld/cli/parse.py`), and what may fail in a report
without a loss: pages are about results, and never cost them."""

import errno
import sys
from collections.abc import Callable

from markupsafe import Markup
from tqdm import tqdm

from ssld.common.packages import say_left_out, what_is_missing
from zoo.errors import InputError, did_you_mean, one_line

__all__ = ["InputError", "Interrupted", "RunFailed", "did_you_mean", "one_line"]


class RunFailed(InputError):
    """What concerns one run alone, and is raised on all of its processes: a loss that is not
    finite, a file of its folder that cannot be written. Others of the same command can go on."""


class Interrupted(Exception):
    """The run was stopped from outside and `--resume` goes on as if nothing had happened: a signal,
    a process that was killed. Exit code 75 (EX_TEMPFAIL of sysexits.h: try again)."""

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows in place of a traceback."""
        return [f"{type(self).__name__}: {self}"]


DISK_FULL = {errno.ENOSPC, errno.EDQUOT}


def attempt(what: str, make: Callable[[], Markup | None]) -> Markup:
    """The element of a page that `make` returns; where it fails, why, as such an element and in one
    line on stderr.

    Everything but a signal and a full disk, which is in the way of more, is caught: fonts, plots
    and other people's names fail in more ways than can be listed, after hours or weeks of training.
    """
    try:
        return make() or Markup()
    except Interrupted:
        raise
    except Exception as error:
        if {getattr(x, "errno", None) for x in (error, error.__cause__)} & DISK_FULL:
            raise
        missing = what_is_missing(error) if isinstance(error, ModuleNotFoundError) else None
        if missing:  # a setting of the environment, not a fault: said once, of all
            module = str(getattr(error, "name", "")).partition(".")[0]
            say_left_out(module, "pages have no pictures")
            return Markup('<p class="note">{}: {}.</p>').format(
                what[:1].upper() + what[1:], missing
            )
        lines = str(error).split("\n")[0][:300]
        message = f"{what} could not be made ({type(error).__name__}: {lines})"
        tqdm.write(f"warning: {message}; everything else goes on", file=sys.stderr)
        return Markup('<p class="note">{}.</p>').format(message[:1].upper() + message[1:])
