"""Tables are read as they are, and what is wrong with them is named."""

import pytest

from workbench.data.listing import Row, Rows, is_inside, is_name, read_table


def _read(tmp_path, content, columns=("file", "label"), **options):
    table = tmp_path / "table.csv"
    table.write_bytes(content)
    faults = []
    lines = list(read_table(table, columns, lambda *fault: faults.append(fault), **options))
    return [tuple(line[name] for name in columns) for _, line in lines], faults


@pytest.mark.parametrize("newline", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_byte_order_marks_and_line_ends_mean_nothing(tmp_path, mark, newline):
    content = mark + newline.join([b"file,label", b'a.wav,"x,y"', "b.wav,ü".encode(), b""])
    assert _read(tmp_path, content) == ([("a.wav", "x,y"), ("b.wav", "ü")], [])


def test_a_table_may_have_no_header(tmp_path):
    content = b"\xef\xbb\xbf0\tcat\n1\tdog\n"
    lines, faults = _read(tmp_path, content, delimiter="\t", has_header=False)
    assert (lines, faults) == ([("0", "cat"), ("1", "dog")], [])


def test_a_line_of_another_length_is_left_out_and_named(tmp_path):
    """An unquoted comma would shift what follows it by a column."""
    lines, faults = _read(tmp_path, b"file,label,licence\na,x,CC0\nb,x,y,CC0\nc\n")
    assert lines == [("a", "x")]
    assert [where.rpartition(", ")[2] for where, _ in faults] == ["line 3", "line 4"]
    assert "more cells than the table has columns (3)" in faults[0][1]
    assert "has no label" in faults[1][1]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'b,"unclosed', "a quote that is not closed"),
        (b'b,"x"y', "a quote that is not closed"),
        (b"b,\xe4", "is no UTF-8 text"),
    ],
)
def test_a_line_that_is_no_text_of_cells_takes_no_other_with_it(tmp_path, line, words):
    lines, faults = _read(tmp_path, b"file,label\na,x\n" + line + b'\nc,"y"\n\nd,z\n')
    assert lines == [("a", "x"), ("c", "y"), ("d", "z")]
    ((where, why),) = faults
    assert where.endswith(", line 3")
    assert words in why


def test_a_cell_with_a_line_break_is_named(tmp_path):
    lines, faults = _read(tmp_path, b'file,label,note\na,x,"two\nlines"\nb,y,\n')
    assert lines == [("b", "y")]
    assert [where.rpartition(", ")[2] for where, _ in faults] == ["line 2"]
    assert "goes on in the line below" in faults[0][1]


def _collect(*rows):
    faults = []
    collected = Rows(lambda *fault: faults.append(fault))
    for number, row in enumerate(rows, 2):
        collected.add(f"t.csv, line {number}", row)
    return list(collected), faults


def test_a_file_is_listed_once_and_below_the_root():
    first = Row("audio/a.wav", "r", "train", (0,))
    rows, faults = _collect(
        first, first._replace(recording="s"), Row("../b.wav", "r", "train", ()), Row("/c", "r", "train", ())
    )
    assert rows == [first]
    assert faults == [
        ("t.csv, line 3", "audio/a.wav is in line 2 too"),
        ("t.csv, line 4", "'../b.wav' is no path below the set's folder"),
        ("t.csv, line 5", "'/c' is no path below the set's folder"),
    ]


def test_a_recording_is_named_and_on_one_side():
    first = Row("a", "r", "train", (0,))
    rows, faults = _collect(first, Row("b", "r", "test", (0,)), Row("c", "", "test", (0,)))
    assert rows == [first]
    assert [where for where, _ in faults] == ["t.csv, line 3", "t.csv, line 4"]
    assert "recording r are in train and test" in faults[0][1]
    assert "which recording c is of" in faults[1][1]


@pytest.mark.parametrize(
    ("path", "name", "inside"),
    [
        ("a.wav", True, True),
        ("..a", True, True),
        ("x/a.wav", False, True),
        ("", False, False),
        (".", False, False),
        ("..", False, False),
        ("x/../../a", False, False),
        ("/a", False, False),
    ],
)
def test_names_and_paths_inside(path, name, inside):
    assert (is_name(path), is_inside(path)) == (name, inside)
