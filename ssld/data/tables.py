"""Several Parquet files as one source: `train-*.parquet`, as the hub splits what is large."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from ssld.common.errors import InputError
from ssld.data.account import Account
from ssld.data.labels import class_order
from ssld.data.manifest import ManifestSource
from ssld.data.source import Indirect, Source


class TableSource(Indirect):
    """The rows of several manifests, one after the other.

    Raises:
        InputError: one of them cannot be opened, an id is in two, some have names as labels and
            some numbers.
    """

    def __init__(self, path: str, files: Sequence[str]) -> None:
        self.path = path
        self.files = [ManifestSource(file) for file in files]
        self._ends = np.cumsum([len(file) for file in self.files])
        self.class_names = self._class_names()
        self.account = Account()
        for file in self.files:
            self.account.add(file.account)
        self._check_ids()

    def _class_names(self) -> list[str] | None:
        named = [file for file in self.files if file.class_names]
        numbered = [f for f in self.files if not f.class_names and f.labeled().any()]
        if named and numbered:
            raise InputError(
                f"{self.path}: labels are names in {named[0].path} and numbers in "
                f"{numbered[0].path}; give them apart, or write one kind"
            )
        names = {name for file in named for name in file.class_names or ()}
        whole = [file.class_names for file in named if set(file.class_names or ()) == names]
        return whole[0] if whole else class_order(names) or None

    def _check_ids(self) -> None:
        rows = [np.arange(len(file)) for file in self.files]
        listed = zip(self.files, rows, strict=True)
        ids = pa.chunked_array([file.listed(numbers)[0] for file, numbers in listed])
        if len(ids.unique()) < len(ids):
            seen = ids.value_counts()
            again = next(x for x in seen if x["counts"].as_py() > 1)["values"].as_py()
            raise InputError(
                f"{self.path}: sample_id {again!r} is in more than one of the files; make the ids "
                "unique, they decide the views"
            )

    def _place(self, i: int) -> tuple[Source, int]:
        number = int(np.searchsorted(self._ends, i, side="right"))
        file = self.files[number]
        return file, i - int(self._ends[number]) + len(file)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def labeled(self) -> np.ndarray:
        return np.concatenate([file.labeled() for file in self.files])

    def listed(self, rows: np.ndarray) -> tuple[pa.Array, pa.Array]:
        numbers = np.searchsorted(self._ends, rows, side="right")
        ids, sizes, order = [], [], []
        for number in np.unique(numbers).tolist():
            at, file = np.flatnonzero(numbers == number), self.files[number]
            some_ids, some_sizes = file.listed(rows[at] - int(self._ends[number]) + len(file))
            ids.append(some_ids)
            sizes.append(some_sizes)
            order.append(at)
        back = pa.array(np.argsort(np.concatenate(order)))
        return pa.concat_arrays(ids).take(back), pa.concat_arrays(sizes).take(back)


def open_tables(path: str, files: Sequence[str]) -> ManifestSource | TableSource:
    """One Parquet file, or several as one source."""
    return ManifestSource(files[0]) if len(files) == 1 else TableSource(path, files)
