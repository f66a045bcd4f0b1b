"""Tables of labelled images: CSV, TSV and parquet, written by hand, pandas-free."""

from pathlib import Path

import pytest
from PIL import Image

from crossformerpp.data.huggingface import is_huggingface
from crossformerpp.data.labelled import open_labelled
from crossformerpp.data.table_files import read_table
from crossformerpp.data.tables import find_tables, open_table, read_rows

ROWS = [("img/a0.png", "cat"), ("img/a1.png", "cat"), ("img/b0.png", "dog"), ("img/b1.png", "dog")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "img").mkdir()
    for shade, (name, _) in enumerate(ROWS):
        Image.new("RGB", (40, 40), (shade, 0, 0)).save(tmp_path / name)
    return tmp_path


def write(folder: Path, name: str, *lines: str) -> Path:
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / name


def pairs(root: Path, which: str, **options: object) -> list[tuple[str, str]]:
    split = open_table(root, which, 0.5, 0, **options)  # type: ignore[arg-type]
    return [(name, split.class_names[label]) for name, label in zip(split.names, split.labels, strict=True)]


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("labels.csv", ["filename,label", *(f"{path},{label}" for path, label in ROWS)]),
        ("labels.csv", ["Class;Image Path", *(f"{label};{path}" for path, label in ROWS)]),
        ("labels.tsv", ["breed\timage", *(f"{label}\t{path}" for path, label in ROWS)]),
        ("labels.csv", [f"{path},{label}" for path, label in ROWS]),  # no heading
        ("labels.csv", ["id,what", *(f"{path},{label}" for path, label in ROWS)]),  # told by their cells
    ],
)
def test_columns_are_found(folder: Path, name: str, lines: list[str]) -> None:
    write(folder, name, *lines)
    assert pairs(folder, "test") == ROWS
    assert pairs(folder / name, "test") == ROWS
    split = open_table(folder, "test", 0.5, 0)
    assert [split.open(number).getpixel((0, 0))[0] for number in range(4)] == [0, 1, 2, 3]


def test_parquet_of_paths_is_a_table_and_not_a_hugging_face_data_set(folder: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    columns = {"image": [path for path, _ in ROWS], "target": [3, 3, 10, None], "x": [b"0"] * 4}
    parquet.write_table(pyarrow.table(columns), folder / "labels.parquet")
    assert not is_huggingface(folder)
    with pytest.warns(UserWarning, match=r"1 × row without a label \(labels.parquet:4\)"):
        assert pairs(folder, "test") == [("img/a0.png", "3"), ("img/a1.png", "3"), ("img/b0.png", "10")]


def test_splits_come_from_a_column_from_files_or_by_lot(folder: Path) -> None:
    splits = ["Train", "valid", "training", "val"]
    lines = [f"{path},{label},{split}" for (path, label), split in zip(ROWS, splits, strict=True)]
    table = write(folder, "labels.csv", "path,label,split", *lines)
    assert pairs(folder, "train") == [ROWS[0], ROWS[2]]
    assert pairs(folder, "val") == pairs(folder, "test") == [ROWS[1], ROWS[3]]
    table.unlink()
    for name, rows in (("train.csv", ROWS[::2]), ("validation.csv", ROWS[1::2])):
        write(folder, name, "path,label", *(f"{path},{label}" for path, label in rows))
    assert pairs(folder, "train") == ROWS[::2]
    assert pairs(folder, "val") == ROWS[1::2]
    for name in ("train.csv", "validation.csv"):
        (folder / name).unlink()
    write(folder, "all.csv", "path,label", *(f"{path},{label}" for path, label in ROWS))
    train, val = pairs(folder, "train"), pairs(folder, "val")
    assert sorted(train + val) == ROWS
    assert {label for _, label in val} == {"cat", "dog"}
    assert open_table(folder, "val", 0.5, 0).is_drawn


def test_paths_may_lack_their_extension_and_lie_in_images(folder: Path) -> None:
    (folder / "img").rename(folder / "images")
    write(folder, "labels.csv", "image_id,label", "a0,cat", "b0,dog", "elsewhere/images/b1.png,dog")
    assert [name for name, _ in pairs(folder, "test")] == ["images/a0.png", "images/b0.png", "images/b1.png"]


def test_left_out_rows_are_counted_with_their_lines(folder: Path) -> None:
    table = write(
        folder, "labels.csv", "path,label", "img/a0.png,cat", "img/none.png,cat", "img/a1.png,", ",dog",
        "../x.png,dog", "", "img/b0.png,dog", "img/b0.png,dog",
    )  # fmt: skip
    rows = read_rows(table)
    assert rows.paths == ["img/a0.png", "img/b0.png", "img/b0.png"]
    assert rows.problems.found == {
        "missing image": ["labels.csv:3: img/none.png", "labels.csv:6: ../x.png"],
        "row without a label": ["labels.csv:4"],
        "row without a path": ["labels.csv:5"],
    }
    with pytest.warns(
        UserWarning, match=r"2 × missing image.*1 × image listed again with the same label \(labels.csv:9"
    ):
        assert len(pairs(folder, "test")) == 2


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            ["path,label", "img/a0.png,cat", "img/a0.png,dog", "img/b0.png,dog"],
            "two labels .*a0.png in lines 2 and 3",
        ),
        (["path,label", "img/a0.png,cat,x"], r"labels.csv, line 2: 3 cells, but the first line has 2"),
        (["path,label,label", "img/a0.png,cat,x"], "two columns are called 'label'"),
        (["path,a,b", "img/a0.png,cat,x"], "Rename it to `label`: its columns are path, a, b; for columns"),
        (["path,label", "img/x.png,cat"], r"none of its images can be used \(left out 1 × missing image"),
        (["path,label", "img/a0.png,cat", "img/a1.png,cat"], r"a single class \(cat\)"),
        (
            ["path,label,split", "img/a0.png,cat,trian"],
            r"1 rows are of no known split \(labels.csv:2: 'trian'\)",
        ),
        (
            ["path,label,split", "img/a0.png,cat,train", "img/b0.png,dog,train", "img/b1.png,owl,val"],
            r"unknown class owl; the model knows cat, dog \(1 rows: labels.csv:4\)",
        ),
    ],
)
def test_bad_tables_are_refused_by_file_and_line(folder: Path, lines: list[str], message: str) -> None:
    write(folder, "labels.csv", *lines)
    with pytest.raises(ValueError, match=message):
        pairs(folder, "val")


@pytest.mark.parametrize(
    "text",
    [
        "sep=;\r\npath;label\r\nimg/a0.png;cat\r\nimg/b0.png;dog\r\n",  # Excel's
        "path,label,,\nimg/a0.png,cat,,\nimg/b0.png,dog,,\n",
        "path|label\nimg/a0.png|cat\nimg/b0.png|dog\n",
    ],
)
def test_tables_as_spreadsheets_write_them(folder: Path, text: str) -> None:
    (folder / "labels.csv").write_text(text, newline="")
    assert pairs(folder, "test") == [("img/a0.png", "cat"), ("img/b0.png", "dog")]


def test_a_number_that_is_none_is_no_class(folder: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    names = ["img/a0.png", "img/a1.png", "img/b0.png"]
    parquet.write_table(
        pyarrow.table({"path": names, "label": [1.0, float("nan"), 2.0]}), folder / "a.parquet"
    )
    with pytest.warns(UserWarning, match=r"1 × row without a label \(a.parquet:2\)"):
        assert pairs(folder, "test") == [("img/a0.png", "1.0"), ("img/b0.png", "2.0")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"path,label\ncaf\xe9.png,cat\n", r"labels\.csv: not in UTF-8 .*; nor are there class folders"),
        (b"", r"labels\.csv: an empty table; nor"),
        (b"who,what\na,b\n", r"labels\.csv: no column of image paths; .* its columns are who, what; nor"),
    ],
)
def test_a_table_that_is_none_is_named_where_nothing_else_is(
    folder: Path, content: bytes, message: str
) -> None:
    (folder / "labels.csv").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        open_labelled(folder, "train")


def test_training_images_among_those_of_validation_are_told(folder: Path) -> None:
    write(folder, "train.csv", "path,label", "img/a0.png,cat", "img/b0.png,dog")
    write(folder, "val.csv", "path,label", "img/a0.png,cat", "img/b1.png,dog")
    assert len(pairs(folder, "train")) == 2
    with pytest.warns(UserWarning, match=r"1 of its images are training images, too; .*: img/a0\.png"):
        pairs(folder, "val")


def test_classes_in_two_spellings_are_named(folder: Path) -> None:
    write(folder, "labels.csv", "path,label", "img/a0.png,Cat", "img/a1.png,cat", "img/b0.png,dog")
    with pytest.warns(UserWarning, match="differ only in case: Cat and cat"):
        pairs(folder, "test")


def test_several_tables_are_ambiguous_and_others_are_no_tables(folder: Path) -> None:
    write(folder, "metrics.csv", "epoch,loss", "1,0.5")
    assert find_tables(folder) == {}
    for name in ("a.csv", "b.csv"):
        write(folder, name, "path,label", "img/a0.png,cat")
    with pytest.raises(ValueError, match=r"several tables list images \(a.csv, b.csv\); pass --data"):
        find_tables(folder)


def test_all_columns_are_there_for_other_labels(folder: Path) -> None:
    table = write(folder, "labels.csv", "path,cat,dog", "img/a0.png,1,0", "img/b0.png,1,1")
    assert read_table(table).columns["dog"] == ["0", "1"]
    rows = read_rows(
        table, lambda it: ["|".join(n for n in ("cat", "dog") if it.columns[n][i] == "1") for i in range(2)]
    )
    assert rows.labels == ["cat", "cat|dog"]
