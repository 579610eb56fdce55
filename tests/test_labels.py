"""labels.csv as CSV defines it."""

from pathlib import Path

import pytest

from extract.labels import LabelError, read_labels


def test_a_quoted_id_keeps_its_ends_of_lines(tmp_path: Path) -> None:
    names = ["new\nline", "u\u2028s", "next\x85line", "c,omma", 'q"uote']
    quoted = ['"' + name.replace('"', '""') + '"' for name in names]
    lines = ["video_id,label,split", *(f"{name},x|y,train" for name in quoted), ""]
    for end in ("\n", "\r\n"):
        (tmp_path / "l.csv").write_bytes(end.join(lines).encode())
        labels = read_labels(tmp_path / "l.csv")
        assert labels.classes_of == dict.fromkeys(names, ("x", "y"))


def test_a_wrong_line_is_named_by_its_number_in_the_file(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text('video_id,label,split\n"a\nb",x,train\nc,x,dev\n')
    with pytest.raises(LabelError, match="line 4: split must be one of"):
        read_labels(tmp_path / "l.csv")
