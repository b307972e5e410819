"""The numbers of a run: what is read, what cannot be, and under what they are kept."""

from pathlib import Path

import pytest

from topk_plugin.trial.distances import _batches
from topk_plugin.trial.metrics import NotMeasured, measure, metric_of


def read(spec):
    return measure(metric_of(spec), Path.cwd(), 0, "", lambda samples, real: 0.0)


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ("csv:{out}/latin.csv:fid", "UnicodeDecodeError"),
        ("csv:{out}/wide.csv:fid", "field larger than field limit"),
        ("csv:{out}/more.csv:fad", "found fid$"),
        ("csv:{out}/folder:fid", "IsADirectoryError"),
        ("json:{out}/folder:fid", "IsADirectoryError"),
        ("json:{out}/latin.csv:fid", "is no JSON"),
        ("json:{out}/huge.json:fid", "which is no number"),
        ("python:exits:f", "SystemExit: 2"),
    ],
)
def test_what_cannot_be_read_is_no_number(in_own_folder, spec, why):
    Path("folder").mkdir()
    Path("latin.csv").write_bytes(b"fid,name\n1.5,\xe9\n")
    Path("wide.csv").write_text("fid\n" + "9" * 200_000)
    Path("more.csv").write_text("fid\n1.5,2.5\n")
    Path("huge.json").write_text(f'{{"fid": 1{"0" * 400}}}')
    Path("exits.py").write_text("import sys\nsys.exit(2)\n")
    with pytest.raises(NotMeasured, match=why):
        read(spec)


def test_a_mark_of_the_byte_order_is_no_part_of_a_name(in_own_folder):
    Path("a.csv").write_bytes(b"\xef\xbb\xbffid,epoch\n1.5,0\n")
    Path("a.json").write_bytes(b'\xef\xbb\xbf{"fid": 1.5}')
    assert read("csv:{out}/a.csv:fid") == read("json:{out}/a.json:fid") == {"fid": 1.5}


@pytest.mark.parametrize("size", [5, 50])
def test_an_image_that_is_cut_is_no_number(tmp_path, size):
    image = pytest.importorskip("PIL.Image")
    file = tmp_path / "a.png"
    image.effect_noise((8, 8), 50).save(file)
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(NotMeasured, match=r"a\.png: "):
        list(_batches(tmp_path, "L"))


def test_distances_by_other_features_are_other_numbers():
    metric = metric_of("fid:{out}/samples:digits")
    by = {metric.called("FID", features).key() for features in ("inception", "a.pth", "b.pth")}
    assert len(by) == 3
    assert metric_of("json:{out}/a:b").key() == ":json:{out}/a:b"  # as trials before have it
