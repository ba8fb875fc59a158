"""What all sets of recordings share: who is held out where the publisher names no validation clips."""

import numpy as np
import pytest

from workbench.data.listing import Listing, Row
from workbench.data.recordings import Columns, hold_out, mean_seconds
from workbench.data_config import FolderData


def _clips(count, takes=3):
    recording = np.array([f"r{number // takes}" for number in range(count)])
    return Columns(("train",), np.zeros(count, np.uint8), recording)


@pytest.mark.parametrize("share", [0.05, 0.1, 0.3])
def test_about_that_share_of_recordings_is_held_out_with_all_takes(share):
    clips = _clips(9_000)
    train, held = hold_out(clips, np.arange(9_000), share)
    assert sorted([*train, *held]) == list(range(9_000))
    assert not set(clips.recording[train]) & set(clips.recording[held])
    spread = np.sqrt(share * (1 - share) / 3_000)
    assert abs(len(held) / 9_000 - share) < 4 * spread


def test_who_is_held_out_does_not_depend_on_who_else_is_there():
    clips = _clips(900)
    whole = set(hold_out(clips, np.arange(900), 0.2)[1])
    some = np.arange(1, 900, 2)
    assert set(hold_out(clips, some, 0.2)[1]) == whole & set(some)
    assert set(hold_out(clips, np.arange(900), 0.1)[1]) < whole


def test_a_headerless_file_does_not_end_the_plan(tmp_path):
    (tmp_path / "x.raw").write_bytes(bytes(1_000))
    listing = Listing(("a",), single_label=False, rows=[Row("x.raw", "x.raw", "all", (0,))])
    assert mean_seconds(FolderData(root=str(tmp_path), clip_seconds=3.0), listing) == 3.0
