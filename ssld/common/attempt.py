"""What may fail in a report without a loss: pages are about results, and never cost them."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable

from markupsafe import Markup
from tqdm import tqdm

from ssld.common.errors import Interrupted

FULL = {errno.ENOSPC, errno.EDQUOT}


def attempt(what: str, make: Callable[[], Markup | None]) -> Markup:
    """The element of a page that `make` returns; where it fails, why, as such an element and in one line on stderr.

    Everything but a signal and a full disk, which is in the way of more, is caught: fonts, plots
    and other people's names fail in more ways than can be listed, after hours or weeks of training.
    """
    try:
        return make() or Markup()
    except Interrupted:
        raise
    except Exception as error:
        if {getattr(x, "errno", None) for x in (error, error.__cause__)} & FULL:
            raise
        lines = str(error).split("\n")[0][:300]
        said = f"{what} could not be made ({type(error).__name__}: {lines})"
        tqdm.write(f"warning: {said}; everything else goes on", file=sys.stderr)
        return Markup('<p class="note">{}.</p>').format(said[:1].upper() + said[1:])
