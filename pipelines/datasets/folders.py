"""A folder for each class: CLASS/x.mp4, or train/CLASS/x.mp4, val/…, test/….

A class may have folders inside. Files that lie in no class's folder are no videos of the data set.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath

from pipelines.datasets.listing import (
    SPLIT_NAMES,
    DataSet,
    DataSetError,
    Listed,
    Source,
    check_label,
)


def read(source: Source, files: Sequence[PurePosixPath]) -> list[Listed]:
    """Raises: DataSetError if a class cannot be a label, or only some folders are splits."""
    tops = {path.parts[0] for path in files if len(path.parts) > 1}
    others = sorted(top for top in tops if top.lower() not in SPLIT_NAMES)
    in_splits = len(others) < len(tops)
    if in_splits and others:
        raise DataSetError(
            f"{source.videos}: {', '.join(sorted(tops - set(others)))} are splits, and "
            f"{', '.join(others)} {'is' if len(others) == 1 else 'are'} none; expected a folder "
            "for each class, or folders train, val and test with the classes in them. Move the "
            "others away, or rename a class that is called as a split"
        )
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
