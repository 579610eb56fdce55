"""A folder for each class: CLASS/x.mp4, or train/CLASS/x.mp4, val/…, test/….

A class may have folders inside. Files that lie in no class's folder are no videos of the data set.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath

from pipelines.datasets.listing import SPLIT_NAMES, DataSet, Listed, Source, check_label


def read(source: Source, files: Sequence[PurePosixPath]) -> list[Listed]:
    """Raises: DataSetError if a class cannot be a label."""
    tops = {path.parts[0].lower() for path in files if len(path.parts) > 1}
    in_splits = bool(tops) and tops <= SPLIT_NAMES.keys()
    depth = 1 if in_splits else 0  # of the class's folder
    return [
        Listed(
            path=str(path),
            labels=(check_label(path.parts[depth], str(source.videos / path)),),
            split=SPLIT_NAMES[path.parts[0].lower()] if in_splits else "train",
        )
        for path in files
        if len(path.parts) > depth + 1
    ]


DATASET = DataSet("folders", "none", read, needs_annotations=False)
