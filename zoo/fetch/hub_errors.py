"""What a hub, its client or the disk did, in one sentence."""

from __future__ import annotations

from json import JSONDecodeError
from pickle import UnpicklingError

import httpx2
from huggingface_hub import errors
from safetensors import SafetensorError

from zoo.errors import InputError, one_line

DETAIL_CHARACTERS = 300
WRAPPERS = (RuntimeError, FileNotFoundError)  # of the client, the reason is their cause
NO_HUB = (JSONDecodeError, TypeError, KeyError, AttributeError, IndexError, AssertionError)
"""What the client raises at answers that it did not expect: `null`, `[1]`, a page."""
ADVICE = {
    401: "give a valid token by HF_TOKEN or `hf auth login`",
    402: "see the plan of that account",
    403: "give a token that may write there, by HF_TOKEN or `hf auth login`",
    409: "someone else changed it at the same time, so repeat",
    412: "someone else changed it at the same time, so repeat",
    429: "wait some minutes and repeat",
}


FAILURES = (
    *(httpx2.HTTPError, httpx2.InvalidURL, errors.XetDownloadError, OSError),
    *(SafetensorError, UnpicklingError, ValueError, RuntimeError, *NO_HUB),
)
"""What a command that talks to a hub can fail with, by the network, the hub, the disk, or what
came from there."""


def sentence(error: Exception, repo: str, endpoint: str) -> str:
    """What was wrong, where, and what to do."""
    while isinstance(error, WRAPPERS) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    where = f"{repo} on {endpoint}"
    detail = one_line(error, DETAIL_CHARACTERS)
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, NO_HUB):
        kind = type(error).__name__
        return f"{where} answers what no hub does ({kind}: {detail}); check HF_ENDPOINT and repeat"
    if isinstance(error, errors.GatedRepoError):
        return f"{where} is gated; ask for access on its page, then give the token of that account"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"there is no {where}, or it is private; check the name and HF_TOKEN"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"there is no such revision: {where}; give a branch, a tag or a whole commit"
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        advice = ADVICE.get(status, "try again later" if status >= 500 else "see its message")
        return f"{where} was refused with status {status} ({detail}); {advice}"
    if isinstance(error, (httpx2.HTTPError, ConnectionError, errors.LocalEntryNotFoundError)):
        kind = type(error).__name__
        return f"no connection for {where} ({kind}: {detail}); check the network and repeat"
    return f"{where} failed ({detail}); mend that and repeat"
