"""What combining licences gives: whoever trains on a teacher's words and on images inherits terms.

A table of what licences allow, not legal advice. It errs towards the louder side: what is not in
the table is unknown, and unknown is said. Ids are those of the hub (SPDX in lower case, plus
`other` and `unknown`), https://huggingface.co/docs/hub/repositories-licenses.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from zoo.errors import InputError
from zoo.release import MANIFEST, read_manifest

Terms = Literal["permissive", "conditions", "noncommercial", "unknown"]

PERMISSIVE = frozenset(
    "apache-2.0 mit mit-0 isc bsd bsd-2-clause bsd-3-clause 0bsd zlib ncsa unlicense wtfpl cc0-1.0 "
    "cc-by-2.0 cc-by-3.0 cc-by-4.0 odc-by pddl cdla-permissive-1.0 cdla-permissive-2.0".split()
)
"""At most the author must be named."""
CONDITIONS = frozenset(
    "cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nd-4.0 gpl-2.0 gpl-3.0 agpl-3.0 lgpl-2.1 lgpl-3.0 mpl-2.0 "
    "odbl openrail openrail++ bigscience-openrail-m creativeml-openrail-m apple-ascl gemma "
    "other".split()
)
"""Commercial use is possible on conditions, or (`other`) under terms of its own."""
NONCOMMERCIAL = (
    "cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 "
    "cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 apple-amlr intel-research h-research "
    "fair-noncommercial-research-license"
).split()
"""From the least to the most restrictive."""
NOT_ON_HUB_NONCOMMERCIAL = ("seer-license",)
"""What timm names so (vissl's SEER: non-commercial), but the hub does not know."""
NOT_ON_HUB = frozenset({"mit-0", "0bsd", *NOT_ON_HUB_NONCOMMERCIAL})
ID = re.compile(r"[a-z0-9][a-z0-9.+-]{0,63}")
TERMS_FILE = "LICENSE.md"
"""What `license_link` points to where the hub knows no id for the terms."""


def normalised(license: str | None) -> str:
    """A licence's id as the hub writes it: `Apache-2.0` -> `apache-2.0`; None -> `unknown`.

    Raises:
        ValueError: it cannot be a licence id.
    """
    id = re.sub(r"-(only|or-later)$", "", (license or "unknown").strip().lower())
    if not ID.fullmatch(id):
        raise ValueError(
            f"licence {str(license)[:64]!r} is no licence id: give one like apache-2.0, "
            "cc-by-nc-4.0 or other"
        )
    return id


def terms(license: str) -> Terms:
    """What kind of terms an id stands for; what is not in the table is unknown, except that a name
    which says non-commercial is taken at its word."""
    if license in PERMISSIVE:
        return "permissive"
    if license in CONDITIONS:
        return "conditions"
    words = set(license.split("-"))
    says_so = bool(words & {"nc", "noncommercial", "research"}) or "non-commercial" in license
    if license in (*NONCOMMERCIAL, *NOT_ON_HUB_NONCOMMERCIAL) or says_so:
        return "noncommercial"
    return "unknown"


def known(license: object) -> str | None:
    """What some file names as a licence, or None where it is nothing that could be one."""
    try:
        return normalised(license) if isinstance(license, str) else None
    except ValueError:
        return None


def combine(given: str | None, inherited: Sequence[tuple[str, str | None]]) -> dict[str, Any]:
    """The licence of a release and what it inherits.

    Args:
        given: what its publisher wants, if anything.
        inherited: (what it comes from, that one's licence), for example ("the teacher X", None).

    Returns:
        `license`: the most restrictive non-commercial one that is inherited (a publisher's own
        stays if it is non-commercial too, or `other`); else what was given; else apache-2.0 if
        all that is inherited is known and permissive, else `other`. `inherited`: [{of, license}].
        `noncommercial`. `note`: what a user must know, in sentences; empty if nothing.

    Raises:
        ValueError: something is no licence id.
    """
    parts = [(of, normalised(license)) for of, license in inherited]
    wanted = normalised(given) if given else None
    forbidding = [license for _, license in parts if terms(license) == "noncommercial"]
    if forbidding:
        own = wanted is not None and (terms(wanted) == "noncommercial" or wanted == "other")
        license = wanted if own and wanted else max(forbidding, key=_restrictiveness)
    elif wanted:
        license = wanted
    else:
        harmless = all(terms(license) == "permissive" for _, license in parts)
        license = "apache-2.0" if harmless else "other"
    noncommercial = bool(forbidding) or terms(license) == "noncommercial"
    return {
        "license": license,
        "inherited": [{"of": of, "license": license} for of, license in parts],
        "noncommercial": noncommercial,
        "note": " ".join(_sentences(license, wanted, parts, noncommercial)),
    }


def of_release(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What `combine` gave, from the facts of a release; those may also just name a licence."""
    license = facts.get("license")
    if isinstance(license, Mapping):
        return dict(license)
    teacher = facts.get("teacher") or {}
    inherited = [(f"the teacher {teacher['name']}", teacher.get("license"))] if teacher else []
    return combine(license, inherited)


def is_loud(license: dict[str, Any]) -> bool:
    """Whether a result of `combine` must be read before anything is done with the weights."""
    ids = [license["license"], *(part["license"] for part in license["inherited"])]
    return bool(license["noncommercial"]) or any(terms(x) == "unknown" for x in ids)


def weights(arch: str | None, checkpoint: str | None, architecture: str) -> dict[str, Any]:
    """What is known of the weights that a network starts from, without the network.

    Args:
        arch: timm name, `hf-hub:` or `local-dir:` id.
        checkpoint: file or folder of weights, where they are not what `arch` names.
        architecture: what to call a network whose weights have no name.

    Returns:
        `name`, `license` (None where it is not known), `hub_id` (None where it is on no hub) and
        `weights`, where they are. A local folder's licence is that of its release: the one in
        config.json would be that of timm's weights of the same architecture.
    """
    arch = arch or ""
    if arch.startswith("local-dir:"):
        checkpoint = checkpoint or arch.removeprefix("local-dir:")
    if checkpoint:
        license, name = None, architecture
        if (Path(checkpoint) / MANIFEST).is_file():
            with contextlib.suppress(InputError, KeyError, TypeError):
                facts = read_manifest(Path(checkpoint))
                license, name = known(facts["license"]["license"]), facts["name"]
        return {"name": name, "license": license, "hub_id": None, "weights": checkpoint}
    hub_id = arch.partition(":")[2].partition("@")[0] if ":" in arch else None
    cfg = timm_weights((hub_id or arch).removeprefix("timm/"))
    if cfg is None:
        return {"name": arch, "license": None, "hub_id": hub_id, "weights": arch}
    name = f"{cfg.architecture}.{cfg.tag}" if cfg.tag else str(cfg.architecture)
    hub_id = hub_id or cfg.hf_hub_id
    place = "timm" if hub_id else cfg.url
    return {"name": name, "license": timm_license(name), "hub_id": hub_id, "weights": place}


def timm_license(name: str) -> str | None:
    """The licence of the weights that timm publishes under `name`; None where it does not say."""
    cfg = timm_weights(name)
    license = known(cfg.license) if cfg is not None else None
    return None if license == "unknown" else license


def timm_weights(name: str) -> Any | None:
    """timm's metadata of the weights called `name`, `resnet50d` or `resnet50d.ra2_in1k`, or None
    where it publishes none."""
    import timm  # takes seconds, and what is settled of a licence needs none of it

    if ":" in name or not timm.is_model(name.split(".")[0]):
        return None
    try:
        cfg = timm.get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError:  # a tag that this version of timm does not know
        return None
    return cfg if cfg is not None and cfg.has_weights else None


def front_matter(license: str) -> dict[str, str]:
    """How a model card says it: `license`, and name and link where the hub has no id for it."""
    if license == "unknown" or (license != "other" and not on_hub(license)):
        return {"license": "other", "license_name": license, "license_link": TERMS_FILE}
    if license == "other":
        return {"license": "other", "license_name": "see-terms", "license_link": TERMS_FILE}
    return {"license": license}


def on_hub(license: str) -> bool:
    """Whether the hub is known to accept the id."""
    return license in (PERMISSIVE | CONDITIONS | set(NONCOMMERCIAL)) - NOT_ON_HUB


def _restrictiveness(license: str) -> int:
    return NONCOMMERCIAL.index(license) if license in NONCOMMERCIAL else len(NONCOMMERCIAL)


def _sentences(
    license: str, wanted: str | None, parts: Sequence[tuple[str, str]], noncommercial: bool
) -> list[str]:
    notes = []
    if noncommercial:
        notes.append("Non-commercial: these weights may not be used commercially.")
    for of, inherited in parts:
        kind = terms(inherited)
        if kind == "noncommercial":
            notes.append(f"The licence of {of} is {inherited}, which forbids commercial use.")
        elif kind == "unknown":
            named = "" if inherited == "unknown" else f" to allow commercial use ({inherited})"
            notes.append(
                f"The licence of {of} is not known{named}: ask before using these weights "
                "commercially."
            )
        elif kind == "conditions":
            notes.append(f"The licence of {of} is {inherited}, which sets conditions: read them.")
    if terms(license) == "unknown":
        notes.append(f"The licence {license} is not known to allow commercial use: read it first.")
    if wanted and wanted != license:
        notes.append(
            f"The publisher gave {wanted}; what is inherited allows no more than {license}."
        )
    return notes
