"""ESC-50's download, from a server on this machine: all of it or nothing."""

import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from test_esc50_prepare import esc50_prepare, prepare, refused, save_esc50

from speechbrain_mam import MAMError

download_esc50 = esc50_prepare.download_esc50


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return save_esc50(tmp_path_factory.mktemp("corpus") / "esc50")


def zipped(corpus, file, change=None):
    """ESC-50 as GitHub zips it: in a folder, with files that are no part of it."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("ESC-50-master/README.md", "about ESC-50")
        archive.writestr("ESC-50-master/tests/test_dataset.py", "code")
        for path in sorted(corpus.rglob("*.*")):
            if change is None or change(path):
                archive.write(path, f"ESC-50-master/{path.relative_to(corpus).as_posix()}")
    return file


@pytest.fixture()
def served(tmp_path):
    """A server of ``tmp_path / "server"`` on this machine."""
    folder = tmp_path / "server"
    folder.mkdir()

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_download(corpus, tmp_path, served, monkeypatch):
    folder, address = served
    zipped(corpus, folder / "master.zip")
    target = tmp_path / "data" / "ESC-50"
    download_esc50(target, f"{address}/master.zip")
    assert sorted(path.name for path in target.iterdir()) == ["README.md", "audio", "meta"]
    assert [path.name for path in target.parent.iterdir()] == ["ESC-50"]
    assert len(prepare(target, tmp_path)["test"]) == 18

    def never(*_):
        raise AssertionError("ESC-50 is there already")

    monkeypatch.setattr(esc50_prepare, "download_esc50", never)
    prepare(target, tmp_path, fold=2, download=True)


def test_nothing_is_downloaded_unless_asked(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(esc50_prepare, "download_esc50", asked.append)
    refused(tmp_path / "esc50", tmp_path, "no such folder")
    assert asked == []
    refused(tmp_path / "esc50", tmp_path, "no such folder", download=True)
    assert asked == [tmp_path / "esc50"]


def test_download_into_a_folder_that_is_there(corpus, tmp_path):
    url = zipped(corpus, tmp_path / "master.zip").as_uri()
    (tmp_path / "empty").mkdir()
    download_esc50(tmp_path / "empty", url)
    assert (tmp_path / "empty" / "meta" / "esc50.csv").is_file()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("not to be lost")
    with pytest.raises(MAMError, match="holds something else than ESC-50"):
        download_esc50(tmp_path / "other", url)
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["thesis.tex"]


def test_downloads_that_fail_leave_nothing(corpus, tmp_path, served):
    folder, address = served
    whole = zipped(corpus, folder / "whole.zip").read_bytes()
    (folder / "cut.zip").write_bytes(whole[: len(whole) // 2])
    (folder / "page.zip").write_bytes(b"<html>please log in</html>")
    broken = bytearray(whole)
    broken[len(whole) // 2] ^= 0xFF
    (folder / "broken.zip").write_bytes(broken)
    zipped(corpus, folder / "lacking.zip", lambda path: path.name != "3-119-A-0.wav")
    zipped(corpus, folder / "untold.zip", lambda path: path.suffix == ".wav")
    with zipfile.ZipFile(folder / "evil.zip", "w") as archive:
        archive.writestr("ESC-50-master/audio/..", "outside")
    for name, message in {
        "nowhere.zip": "could not be downloaded from .*404",
        "cut.zip": "could not be downloaded from .*not a zip file",
        "page.zip": "could not be downloaded from .*not a zip file",
        "broken.zip": "could not be downloaded from",
        "lacking.zip": r"of 90 clips the archive lacks 1: \['3-119-A-0\.wav'\]; nothing was kept",
        "untold.zip": r"the archive has no meta/esc50\.csv; nothing was kept",
        "evil.zip": "the archive has a file with the name",
    }.items():
        with pytest.raises(MAMError, match=message):
            download_esc50(tmp_path / "data" / "ESC-50", f"{address}/{name}")
        assert not (tmp_path / "data").exists(), name
    with pytest.raises(MAMError, match="could not be downloaded from 'nothing at all'"):
        download_esc50(tmp_path / "data" / "ESC-50", "nothing at all")
    assert not (tmp_path / "data").exists()


def test_a_download_that_stops_halfway(corpus, tmp_path, served, monkeypatch):
    folder, address = served
    zipped(corpus, folder / "master.zip")
    monkeypatch.setattr(
        SimpleHTTPRequestHandler, "copyfile", lambda _, source, out: out.write(source.read(1000))
    )
    with pytest.raises(MAMError, match=r"1000 of \d+ bytes arrived; nothing was kept"):
        download_esc50(tmp_path / "data" / "ESC-50", f"{address}/master.zip")
    assert not (tmp_path / "data").exists()


def a_link():
    link = zipfile.ZipInfo("ESC-50-master/audio/link.wav")
    link.external_attr = 0o120777 << 16
    return link


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("ESC-50-master/audio/../../../../out.wav", b"x", None),  # not among ESC-50's files
        ("ESC-50-master/audio/..", b"x", "a file with the name 'ESC-50-master/audio/..'"),
        ("ESC-50-master/..", b"x", "a file with the name"),
        ("/etc/audio/out.wav", b"x", None),
        ("ESC-50-master/audio\\..\\out.wav", b"x", "a file with the name"),
        (a_link(), b"/etc/passwd", None),  # becomes a file that holds the link's text
        ("ESC-50-master/archive.zip", b"x", "holds another one"),
    ],
    ids=["deep", "parent", "top", "absolute", "backslash", "link", "archive"],
)
def test_doctored_archives(corpus, tmp_path, name, content, message):
    file = zipped(corpus, tmp_path / "master.zip")
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(name, content)
    target = tmp_path / "below" / "here" / "data"
    before = {path for path in tmp_path.rglob("*") if "below" not in path.parts}
    if message is None:
        download_esc50(target, file.as_uri())
        assert not any(path.is_symlink() for path in target.rglob("*"))
        assert [path.name for path in target.parent.iterdir()] == ["data"]
    else:
        with pytest.raises(MAMError, match=message):
            download_esc50(target, file.as_uri())
        assert not target.exists() and not list(tmp_path.glob("below/here/.*"))
    assert {path for path in tmp_path.rglob("*") if "below" not in path.parts} == before


@pytest.mark.parametrize("how", ["bytes", "files"])
def test_an_archive_that_unpacks_to_far_too_much(corpus, tmp_path, how, monkeypatch):
    """Its limits are lowered rather than four gigabytes written."""
    import esc50_download

    monkeypatch.setattr(esc50_download, f"MAX_{how.upper()}", 1 << 20 if how == "bytes" else 20)
    file = zipped(corpus, tmp_path / "master.zip")
    with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("ESC-50-master/audio/bomb.wav", bytes(2 << 20))
    with pytest.raises(MAMError, match="unpacks to more than"):
        download_esc50(tmp_path / "data", file.as_uri())
    assert not (tmp_path / "data").exists()
