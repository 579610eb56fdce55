"""Breakfast: the folders tell all: P03/cam01/P03_cereals.avi, P03/stereo/P03_cereals_ch0.avi.

The class is the last token of the name, after a channel of the stereo camera is taken off. Four
official folds by person: fold 1 tests P03–P15, 2 P16–P28, 3 P29–P41, 4 P42–P54. A person is never
parted: several cameras show the same breakfast.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from pipelines.datasets.listing import DataSet, DataSetError, Listed, Source

CLASSES = (
    *("cereals", "coffee", "friedegg", "juice", "milk", "pancake", "salat", "sandwich"),
    *("scrambledegg", "tea"),
)
FIRST_PERSON, PERSONS_PER_FOLD, FOLDS = 3, 13, 4
PERSON = re.compile(r"(?<![A-Za-z0-9])P(\d{2})(?![A-Za-z0-9])")
CHANNEL = re.compile(r"_ch\d+$")


def read(source: Source, files: Sequence[PurePosixPath]) -> list[Listed]:
    """Files of another name than the data set's are no videos of it.

    Raises: DataSetError if there is no such fold.
    """
    if not 1 <= source.fold <= FOLDS:
        raise DataSetError(f"Breakfast has folds 1 to {FOLDS}, found --fold {source.fold}")
    found = (_parse(path, source.fold) for path in files)
    return [video for video in found if video is not None]


def _parse(path: PurePosixPath, fold: int) -> Listed | None:
    label = CHANNEL.sub("", path.name).rpartition("_")[2]
    person = PERSON.search(str(path).replace("_", "/"))
    if label not in CLASSES or person is None:
        return None
    tested_in = (int(person[1]) - FIRST_PERSON) // PERSONS_PER_FOLD + 1
    if not 1 <= tested_in <= FOLDS:
        return None
    split = "test" if tested_in == fold else "train"
    return Listed(str(path), (label,), split, group=person[0])


DATASET = DataSet("Breakfast", "none", read, needs_annotations=False)
