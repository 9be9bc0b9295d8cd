"""The packaged mini corpus and how it is expanded."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
from conftest import expanded_corpus

from speechbrain_mam.embedded import corpora
from speechbrain_mam.embedded.corpora import cache_folder, mini_corpus

ARCHIVE = Path(corpora.__file__).parent / "data" / "mini_ljspeech.tar"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return expanded_corpus(tmp_path_factory, "mini_ljspeech")


def test_archive_is_small():
    assert ARCHIVE.stat().st_size <= 8e6


@pytest.mark.slow
def test_layout_count_and_duration(corpus):
    lines = (corpus / "metadata.csv").read_text(encoding="utf-8").splitlines()
    rows = [line.split("|") for line in lines]
    assert 550 <= len(rows) <= 650
    assert all(len(row) == 3 for row in rows)
    assert len({row[2] for row in rows}) == len(rows)
    assert all(re.fullmatch(r"ML001-\d{4}", row[0]) for row in rows)
    assert not any(re.search(r"\d", row[2]) for row in rows)
    assert any(re.search(r"\d", row[1]) for row in rows)
    infos = [soundfile.info(corpus / "wavs" / f"{row[0]}.wav") for row in rows]
    assert {(i.samplerate, i.channels, i.subtype) for i in infos} == {(16000, 1, "PCM_16")}
    assert len(list((corpus / "wavs").iterdir())) == len(rows)
    assert 20 <= sum(info.duration for info in infos) / 60 <= 30
    assert all(1.5 <= info.duration <= 6.0 for info in infos)
    assert "espeak-ng" in (corpus / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_expanding_again_changes_nothing(corpus):
    before = (corpus / "metadata.csv").stat().st_mtime_ns
    assert mini_corpus(cache=corpus.parent) == corpus
    assert (corpus / "metadata.csv").stat().st_mtime_ns == before
    assert [path.name for path in corpus.parent.iterdir()] == [corpus.name]


@pytest.mark.slow
def test_two_processes_at_once(tmp_path):
    code = "import sys; from pathlib import Path\n"
    code += "from speechbrain_mam.embedded.corpora import mini_corpus\n"
    code += "print(mini_corpus(cache=Path(sys.argv[1])))"
    command = [sys.executable, "-c", code, str(tmp_path)]
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [process.communicate() for process in running]
    assert [process.returncode for process in running] == [0, 0], outputs
    assert len({out for out, _ in outputs}) == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_an_interrupted_expansion_leaves_nothing(tmp_path, monkeypatch):
    def stop(content: bytes, folder: Path) -> None:
        (folder / "metadata.csv").write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(corpora, "_expand", stop)
    with pytest.raises(KeyboardInterrupt):
        mini_corpus(cache=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_unknown_corpus_names_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match=r"nothing.*mini_ljspeech"):
        mini_corpus("nothing", cache=tmp_path)


def test_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("SPEECHBRAIN_MAM_CACHE", raising=False)
    assert cache_folder() == tmp_path / "xdg" / "speechbrain_mam"
    monkeypatch.setenv("SPEECHBRAIN_MAM_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("SPEECHBRAIN_MAM_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "speechbrain_mam"
