"""Importers, on small files made to the official layouts, with the faults that real ones have."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from extract.videos import find_videos, read_labelled_ids
from pipelines.cli import main
from pipelines.datasets.activitynet import fold_name
from pipelines.datasets.listing import DataSetError, Listed, Source, without_suffix
from pipelines.importing import Report, choose_val, import_dataset

ACTIVITYNET = {
    "version": "VERSION 1.3",
    "taxonomy": [],
    "database": {
        "sJ_MuQUNzxQ": {
            "subset": "training",
            "annotations": [
                {"segment": [0.0, 9.5], "label": "Rock climbing"},
                {"segment": [12.0, 20.0], "label": "Rock climbing"},
                {"segment": [21.0, 22.0], "label": "Long jump"},
            ],
        },
        "v_abcdefghi": {"subset": "training", "annotations": [{"label": "Long jump"}]},
        "-0123456789": {"subset": "validation", "annotations": [{"label": "Long jump"}]},
        "goneGONEgon": {"subset": "validation", "annotations": [{"label": "Long jump"}]},
        "testTESTtes": {"subset": "testing", "annotations": []},
    },
}


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    """Create empty files below a folder `videos`, and text files beside it."""

    def write(*videos: str, **texts: str) -> Path:
        for video in videos:
            path = tmp_path / "videos" / video
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        for name, text in texts.items():
            (tmp_path / name.replace("__", ".")).write_text(text, encoding="utf-8")
        return tmp_path

    return write


def run(
    name: str, folder: Path, *annotations: str, val_share: float = 0.1, **more: object
) -> Report:
    files = tuple(folder / annotation for annotation in annotations)
    source = Source(folder / "videos", files, **more)  # type: ignore[arg-type]
    return import_dataset(name, source, folder / "out", val_share=val_share)


def labels(folder: Path) -> dict[str, tuple[str, str]]:
    with (folder / "out" / "labels.csv").open(newline="") as file:
        return {row["video_id"]: (row["label"], row["split"]) for row in csv.DictReader(file)}


def lines(folder: Path, name: str) -> list[str]:
    return (folder / "out" / name).read_text().splitlines()


def test_activitynet_joins_labels_and_goes_on_with_what_is_there(
    make: Callable[..., Path],
) -> None:
    folder = make(
        *("v_sJ_MuQUNzxQ.mp4", "more/v_v_abcdefghi.mkv", "-0123456789.webm", "v_testTESTtes.mp4"),
        *("v_sJ_MuQUNzxQ.webm", "v_notListed01.mp4", "v_-0123456789.f137.mp4", "notes.md"),
        anet__json=json.dumps(ACTIVITYNET),
    )
    report = run("activitynet", folder, "anet.json")
    assert labels(folder) == {
        "v_sJ_MuQUNzxQ": ("Rock climbing|Long jump", "train"),
        "more/v_v_abcdefghi": ("Long jump", "train"),
        "-0123456789": ("Long jump", "val"),
    }
    assert lines(folder, "missing.txt") == ["goneGONEgon"]
    assert lines(folder, "extra.txt") == ["v_-0123456789.f137.mp4", "v_notListed01.mp4"]
    assert lines(folder, "duplicates.txt") == ["v_sJ_MuQUNzxQ.webm"]
    assert (report.listed, report.found, report.without_label) == (5, 4, 1)
    assert report.splits == {"train": 2, "val": 1, "test": 0}
    assert json.loads((folder / "out" / "import.json").read_text())["missing"] == 1


def test_an_id_may_itself_begin_with_the_prefix_of_files() -> None:
    assert fold_name("v_abcdefghi") == "v_abcdefghi"  # 11 characters: an id
    assert fold_name("v_v_abcdefghi") == "v_abcdefghi"
    assert fold_name("v_-0123456789") == "-0123456789"


def test_what_is_written_is_what_extraction_takes(make: Callable[..., Path]) -> None:
    folder = make("a b/x,1.mp4", "a b/ü.avi", "c/x.mp4")
    run("folders", folder, val_share=0.5)
    videos = find_videos([folder / "out" / "videos.csv"])
    assert [video.id for video in videos] == ["a b/x,1", "a b/ü", "c/x"]
    assert [video.id for video in find_videos([folder / "videos"])] == [v.id for v in videos]
    assert read_labelled_ids(folder / "out" / "labels.csv") == [v.id for v in videos]


@pytest.mark.parametrize("title", ["", "VideoName\tSplit\n"])
def test_fcvid_reads_names_and_columns_line_by_line(make: Callable[..., Path], title: str) -> None:
    folder = make(
        *("beach/a.mp4", "b.flv", "cat/c.mp4", "beach/d.mp4"),
        splits__txt=title
        + "/beach/a.mp4\ttrain\r\nbeach//b.flv\ttrain\r\ncat/c.mp4 test\nd.mp4 test\n",
        matrix__txt="1\t0\t0\n1 1 0 \r\n0 1 0\n0 0 0\n",
        names__txt="1 beach\n2 cat\n3 tailgate party\n",
    )
    report = run("fcvid", folder, "splits.txt", "matrix.txt", classes=folder / "names.txt")
    found = labels(folder)
    assert found["cat/c"] == ("cat", "test")
    assert found["b"][0] == "beach|cat"
    assert found["beach/a"][0] == "beach"
    assert "beach/d" not in found  # its row marks no class
    assert report.without_label == 1


def test_fcvid_lists_may_hold_commas_in_names_and_pad_labels(make: Callable[..., Path]) -> None:
    folder = make(
        *("a/one, two.mp4", "b/x.mp4", "b/y.mp4"),
        fcvid_train__txt="a/one, two,120,5,7,-1\nb/x,90,5,-1,-1\n",
        fcvid_test__txt="b/y,33,7\n",
    )
    run("fcvid", folder, "fcvid_train.txt", "fcvid_test.txt", val_share=0)
    assert labels(folder) == {
        "a/one, two": ("5|7", "train"),
        "b/x": ("5", "train"),
        "b/y": ("7", "val"),
    }


def test_fcvid_files_of_unequal_length_are_refused(make: Callable[..., Path]) -> None:
    folder = make("a.mp4", s__txt="a train\n", m__txt="1 0\n0 1\n")
    with pytest.raises(DataSetError, match=r"s\.txt has 1 lines, .*m\.txt 2; expected equal"):
        run("fcvid", folder, "s.txt", "m.txt")


KINETICS = """\
label,youtube_id,time_start,time_end,split,is_cc
playing chess,-_0aBcDeFgH,12,22,train,0
"tasting food",abcDEFabcDE,0,10,train,0
tasting_food,abcDEFabcDF,100.0,110.0,validate,0
juggling,zzzzzzzzzzz,1,11,validate,0
"""


def test_kinetics_names_clips_by_their_times(make: Callable[..., Path]) -> None:
    folder = make(
        *("playing chess/-_0aBcDeFgH_000012_000022.mp4", "abcDEFabcDE_000000_000010.mkv"),
        *("tasting_food/abcDEFabcDF_000100_000110.mp4", "x/abcDEFabcDE_000005_000015.mp4"),
        k__csv=KINETICS,
    )
    report = run("kinetics", folder, "k.csv")
    assert labels(folder) == {
        "playing chess/-_0aBcDeFgH_000012_000022": ("playing chess", "train"),
        "abcDEFabcDE_000000_000010": ("tasting food", "train"),
        "tasting_food/abcDEFabcDF_000100_000110": ("tasting food", "val"),
    }
    assert lines(folder, "missing.txt") == ["zzzzzzzzzzz_000001_000011"]
    assert lines(folder, "extra.txt") == ["x/abcDEFabcDE_000005_000015.mp4"]
    assert report.splits == {"train": 2, "val": 1, "test": 0}


@pytest.mark.parametrize(
    "header",
    [
        '"label","youtube_id","time_start","time_end","split"',
        "label, youtube_id , time_start, time_end, split",
    ],
)
def test_kinetics_headers_may_be_quoted_or_padded(make: Callable[..., Path], header: str) -> None:
    lines = f'{header}\n"dancing", "aaaaaaaaaaa", 1, 11, "train"\n'
    report = run("kinetics", make("aaaaaaaaaaa_000001_000011.mp4", train__csv=lines), "train.csv")
    assert (report.listed, report.found) == (1, 1)


def test_kinetics_test_file_without_labels_or_split_is_told_by_its_name(
    make: Callable[..., Path],
) -> None:
    folder = make(
        *("a_000001_000011.mp4", "b_000001_000011.mp4"),
        train__csv="label,youtube_id,time_start,time_end,split\njuggling,a,1,11,train\n",
        kinetics_400_test__csv="youtube_id,time_start,time_end\nb,1,11\n",
    )
    report = run("kinetics", folder, "train.csv", "kinetics_400_test.csv")
    assert list(labels(folder)) == ["a_000001_000011"]
    assert report.without_label == 1


def test_kinetics_lists_with_blanks_in_paths_find_folders_with_underscores(
    make: Callable[..., Path],
) -> None:
    folder = make(
        *("train/air_drumming/x.mp4", "train/zumba/x.mp4", "val/air_drumming/y.mp4"),
        train__txt="/data/k400/air drumming/x.mp4 0\n/data/k400/zumba/x.mp4 1\n",
        val__txt="air drumming/y.mp4 0\nzumba/z.mp4 1\n",
        names__txt="air drumming\nzumba\n",
    )
    run("kinetics", folder, "train.txt", "val.txt", classes=folder / "names.txt")
    assert labels(folder) == {
        "train/air_drumming/x": ("air drumming", "train"),
        "train/zumba/x": ("zumba", "train"),
        "val/air_drumming/y": ("air drumming", "val"),
    }
    assert lines(folder, "missing.txt") == ["zumba/z"]


def breakfast_files() -> list[str]:
    """Person P03 … P54 make coffee and tea, seen by two cameras and, P04, by the stereo camera."""
    files = [
        f"P{person:02d}/{camera}/P{person:02d}_{label}.avi"
        for person in range(3, 55)
        for camera in ("cam01", "webcam02")
        for label in ("coffee", "tea")
    ]
    stereo = [f"P04/stereo/P04_scrambledegg_ch{channel}.avi" for channel in (0, 1)]
    later = ["P40/stereo/P40_scrambledegg_ch0.avi", "P30/cam01/P30_scrambledegg.avi"]
    return [*files, *stereo, *later, "P03/cam01/P03_unknown.avi", "demo.avi"]


@pytest.mark.parametrize(("fold", "first", "last"), [(1, 3, 15), (2, 16, 28), (4, 42, 54)])
def test_breakfast_folds_part_by_person(
    make: Callable[..., Path], fold: int, first: int, last: int
) -> None:
    folder = make(*breakfast_files())
    report = run("breakfast", folder, fold=fold)
    splits: dict[str, set[str]] = {"train": set(), "val": set(), "test": set()}
    for video_id, (_, split) in labels(folder).items():
        splits[split].add(video_id.split("/")[0])
    assert splits["test"] == {f"P{person:02d}" for person in range(first, last + 1)}
    assert splits["train"] | splits["val"] == {f"P{p:02d}" for p in range(3, 55)} - splits["test"]
    assert not splits["train"] & splits["val"]
    assert 1 <= len(splits["val"]) <= 10
    assert report.extra == 2


def test_breakfast_stereo_channels_are_no_classes(make: Callable[..., Path]) -> None:
    folder = make(*breakfast_files())
    run("breakfast", folder, val_share=0)
    assert labels(folder)["P04/stereo/P04_scrambledegg_ch1"] == ("scrambledegg", "val")


def test_a_folder_for_each_class(make: Callable[..., Path]) -> None:
    folder = make("train/dog/a.mp4", "train/cat/deep/b.mov", "val/dog/c.mp4", "Test/cat/d.mp4")
    run("folders", folder)
    assert labels(folder) == {
        "train/dog/a": ("dog", "train"),
        "train/cat/deep/b": ("cat", "train"),
        "val/dog/c": ("dog", "val"),
        "Test/cat/d": ("cat", "test"),
    }


def test_a_folder_beside_those_of_splits_is_refused(make: Callable[..., Path]) -> None:
    folder = make("train/dog/a.mp4", "Val/dog/b.mp4", "extras/x/c.mp4")
    with pytest.raises(DataSetError, match="Val, train are splits, and extras is none; expected"):
        run("folders", folder)


def test_a_folder_that_cannot_be_read_is_no_folder_of_missing_videos(
    make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root reads all folders; the system's answer to others is given in its place."""
    folder = make("dog/a.mp4", "cat/b.mp4")
    scandir = os.scandir

    def refuse(path: str) -> object:
        if Path(path).name == "cat":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataSetError, match=r"videos/cat: cannot be read \(Permission denied\)"):
        run("folders", folder)


def test_tables_join_rows_and_tell_what_stands_twice(make: Callable[..., Path]) -> None:
    folder = make(
        *("a.mp4", "in/b.mp4", "in/c.mp4"),
        t__csv="\ufeffvideo_id,label,split\na,x|y,train\nin/b,x,train\nin/b,z,train\n"
        "in/b,q,val\nin/c,x,validation\n",
    )
    report = run("table", folder, "t.csv")
    assert labels(folder) == {
        "a": ("x|y", "train"),
        "in/b": ("x|z", "train"),
        "in/c": ("x", "val"),
    }
    assert lines(folder, "duplicates.txt") == ["in/b", "in/b"]
    assert report.duplicates == 2


def test_a_file_in_another_folder_is_not_taken_for_the_listed_one(
    make: Callable[..., Path],
) -> None:
    folder = make("one/g01/x.mp4", t__csv="path,label\none/g01/x.mp4,a\ntwo/g01/x.mp4,b\n")
    run("table", folder, "t.csv")
    assert list(labels(folder)) == ["one/g01/x"]
    assert lines(folder, "missing.txt") == ["two/g01/x"]


def test_two_listed_videos_do_not_share_a_file(make: Callable[..., Path]) -> None:
    folder = make("x.mp4", "y.mp4", t__csv="path,label\none/x.mp4,a\ntwo/x.mp4,b\ny.mp4,a\n")
    run("table", folder, "t.csv")
    assert labels(folder)["x"][0] == "a"
    assert lines(folder, "duplicates.txt") == ["two/x (its file is that of one/x)"]


def test_classes_that_train_lacks_are_left_out(make: Callable[..., Path]) -> None:
    folder = make(
        *("a.mp4", "b.mp4", "c.mp4"),
        t__csv="video_id,label,split\na,x,train\nb,x,val\nc,y,val\ngone,y,train\n",
    )
    report = run("table", folder, "t.csv")
    assert set(labels(folder)) == {"a", "b"}
    assert (report.unknown_class, report.missing) == (1, 1)


def test_hidden_files_and_links_in_a_circle_add_nothing(make: Callable[..., Path]) -> None:
    folder = make("dog/a.mp4", "dog/._a.mp4", "cat/b.mp4", "cat/c.mp4")
    (folder / "videos" / "dog" / "round").symlink_to(folder / "videos")
    report = run("folders", folder)
    assert (report.listed, report.extra, report.duplicates) == (3, 0, 0)


def test_a_name_that_is_not_utf8_is_refused(make: Callable[..., Path]) -> None:
    folder = make("dog/a.mp4")
    Path(os.fsdecode(os.fsencode(folder / "videos" / "dog") + b"/b\xff.mp4")).touch()
    with pytest.raises(DataSetError, match="the name is not UTF-8; rename it"):
        run("folders", folder)


def many(count: int, **more: str) -> list[Listed]:
    return [Listed(f"v{n}", (f"class{n % 4}",), "train", **more) for n in range(count)]


def test_the_share_held_out_is_about_the_one_asked_for_and_no_class_is_lost() -> None:
    chosen, held_out = choose_val(many(2000), val_share=0.1)
    assert 150 < held_out < 250  # binomial: 200 ± 13
    assert sum(video.split == "val" for video in chosen) == held_out
    tiny, _ = choose_val(many(4), val_share=0.9)
    assert [video.split for video in tiny] == ["train"] * 4  # each is the last of its class


def test_who_is_held_out_does_not_depend_on_who_else_is_there() -> None:
    all_of_them = {v.path for v in choose_val(many(400), val_share=0.1)[0] if v.split == "val"}
    half = {v.path for v in choose_val(many(400)[:200], val_share=0.1)[0] if v.split == "val"}
    assert half == all_of_them & {f"v{n}" for n in range(200)}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/a//b.mp4", "a/b"),
        ("a\\b.WEBM", "a/b"),
        ("Mr. Bean no. 1", "Mr. Bean no. 1"),
        ("clip.12", "clip.12"),
        ("x.y.mkv", "x.y"),
        ("c.d", "c.d"),
    ],
)
def test_suffixes_are_taken_off_and_dots_in_names_kept(path: str, expected: str) -> None:
    assert without_suffix(path) == expected


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("activitynet", "[]", "expected a mapping `database`"),
        ("activitynet", "{", "not a readable JSON file"),
        ("activitynet", '{"database": {"x": {"subset": "trian"}}}', "found 'trian'"),
        ("activitynet", '{"database": {"x": []}}', "'x': expected a subset"),
        ("fcvid", "name 3 4\n", "its name does not tell which split"),
        ("kinetics", "label,youtube_id,time_start,time_end,split\nx,y,a,2,train\n", ":2: expected"),
        ("kinetics", "label,youtube_id,time_start,time_end,split\nx,y\n", ":2: expected 5 cells"),
        ("kinetics", "label,youtube_id,time_start,time_end\nx,y,inf,2\n", ":2: expected times"),
        ("table", f"video_id,label\na,{131073 * 'x'}\n", ":2: cannot be read as CSV (field larger"),
        ("table", "video,label\na,b\n", ":2: expected video_id"),
        ("table", "video_id,label\na,\n", ":2: expected a label"),
        ("table", "video_id,label\nb,x\n", "none of the 1 listed videos"),
    ],
)
def test_files_of_another_layout_are_refused_with_file_and_line(
    make: Callable[..., Path], name: str, text: str, words: str
) -> None:
    folder = make("a.mp4", annotations__x=text)
    with pytest.raises(DataSetError) as caught:
        run(name, folder, "annotations.x")
    assert str(folder) in str(caught.value)
    assert words in str(caught.value)


def test_annotations_are_asked_for_where_they_are_needed_and_refused_where_not(
    make: Callable[..., Path],
) -> None:
    folder = make("a/a.mp4", x__csv="")
    with pytest.raises(DataSetError, match="ActivityNet: give its annotation files"):
        run("activitynet", folder)
    with pytest.raises(DataSetError, match="folders: takes no annotation files"):
        run("folders", folder, "x.csv")


def test_the_command_reports_and_prints_one_json_document(make: Callable[..., Path]) -> None:
    folder = make("dog/a.mp4", "dog/b.mp4", "cat/c.mp4", "cat/d.mp4", "stray.mp4")
    arguments = ["import", "folders", "--videos", folder / "videos", "--out", folder / "out"]
    result = CliRunner().invoke(main, [*map(str, arguments), "--json"])
    assert result.exit_code == 0
    assert json.loads(result.stdout)["found"] == 4
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert "folders: 4 of 4 listed videos found" in result.stdout
    assert f"1 not listed: {folder / 'out' / 'extra.txt'}" in result.stdout
    arguments[3] = folder / "gone"
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert (result.exit_code, result.stdout) == (1, "")
    assert "gone: no such folder" in result.stderr
