"""What the documents point to is there: links, scripts and recipes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
LINK = re.compile(r"\]\((?!https?:|#)([^)\s#]+)[^)]*\)")
BLOCK = re.compile("^```.*?^```", re.DOTALL | re.MULTILINE)
NAMED = re.compile(r"(?<![\w/.])(?:benchmarks|configs)/[\w./-]+\.(?:py|yaml)\b")

PLACEHOLDER = re.compile(r"[A-Z]{2}")
"""As in `configs/transfer/DATASET.yaml`."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_named_files_are_there(page):
    text = page.read_text(encoding="utf-8")
    pointed_to = [page.parent / link for link in LINK.findall(BLOCK.sub("", text))]
    if page.name not in ("log.md", "CHANGELOG.md"):  # they tell of files as they were
        pointed_to += [ROOT / name for name in NAMED.findall(text) if not PLACEHOLDER.search(name)]
    assert [str(x) for x in pointed_to if not x.exists()] == []
