"""What may fail in a report without a loss: pages are about results, and never cost them."""

from __future__ import annotations

import errno
import html
import sys
from collections.abc import Callable

from tqdm import tqdm

from ssld.common.errors import Interrupted

FULL = {errno.ENOSPC, errno.EDQUOT}


def attempt(what: str, make: Callable[[], str | None]) -> str:
    """What `make` returns; where it fails, why, as an element of a page and in one line on stderr.

    Everything but a signal and a full disk, which is in the way of more, is caught: fonts, plots
    and other people's names fail in more ways than can be listed, after hours or weeks of training.
    """
    try:
        return make() or ""
    except Interrupted:
        raise
    except Exception as error:
        if {getattr(x, "errno", None) for x in (error, error.__cause__)} & FULL:
            raise
        lines = str(error).split("\n")[0][:300]
        said = f"{what} could not be made ({type(error).__name__}: {lines})"
        tqdm.write(f"warning: {said}; everything else goes on", file=sys.stderr)
        return f'<p class="note">{html.escape(said[:1].upper() + said[1:])}.</p>'
