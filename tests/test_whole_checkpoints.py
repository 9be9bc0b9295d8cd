"""Checkpoints of any Brain: killed in each write, damaged in each way, stopped by each signal."""

import logging
import os
import shutil
import signal
import sys

import pytest
import torch
from processes import run_python
from speechbrain.utils.checkpoints import (
    DEFAULT_SAVE_HOOKS,
    Checkpointer,
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)

from speechbrain_mam import MAMError
from speechbrain_mam.brain.checkpoint_files import CHECKSUMS
from speechbrain_mam.brain.whole_checkpoints import WholeCheckpointer, write_whole

NAMES = ("first", "counter", "second")


@register_checkpoint_hooks
class Counter:
    """A recoverable that is a text file, as SpeechBrain's epoch counter is."""

    def __init__(self, value=0):
        self.value = value

    @mark_as_saver
    def save(self, path):
        path.write_text(str(self.value))

    @mark_as_loader
    def load(self, path, end_of_epoch):
        self.value = int(path.read_text())


def objects(value: float) -> dict:
    first, second = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)
    for module in (first, second):
        torch.nn.init.constant_(module.weight, value)
    return dict(zip(NAMES, (first, Counter(int(value)), second), strict=True))


def whole(folder, value=0.0, **options) -> Checkpointer:
    checkpointer = Checkpointer(folder, objects(value), **options)
    write_whole(checkpointer)
    return checkpointer


def values(checkpointer) -> tuple:
    first, counter, second = (checkpointer.recoverables[name] for name in NAMES)
    return first.weight[0, 0].item(), counter.value, second.weight[0, 0].item()


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def in_a_fork(function) -> int:
    """The exit code of a function in a process of its own."""
    child = os.fork()
    if not child:
        try:
            function()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_at(save, when: str, half: bool, monkeypatch):
    """Save in a fork that is killed before the file `when` is written, or in its middle."""

    def program():
        def dying(hook):
            def call(obj, path):
                if path.stem == when:
                    if half:
                        hook(obj, path)
                        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
                    os.kill(os.getpid(), signal.SIGKILL)
                hook(obj, path)

            return call

        for kind, hook in list(DEFAULT_SAVE_HOOKS.items()):
            DEFAULT_SAVE_HOOKS[kind] = dying(hook)
        save()

    assert in_a_fork(program) == -signal.SIGKILL


@pytest.mark.parametrize("half", [False, True], ids=["before", "within"])
@pytest.mark.parametrize("when", NAMES)
def test_a_kill_while_saving_leaves_the_checkpoint_of_before(tmp_path, when, half, monkeypatch):
    whole(tmp_path, 1.0).save_checkpoint()
    killed_at(whole(tmp_path, 2.0).save_checkpoint, when, half, monkeypatch)
    again = whole(tmp_path)
    assert len(again.list_checkpoints()) == 1
    again.recover_if_possible()
    assert values(again) == (1.0, 1, 1.0)
    again.save_and_keep_only(importance_keys=[])
    assert len(names(tmp_path)) == 1  # what the killed one left is gone


@pytest.mark.parametrize("half", [False, True], ids=["before", "within"])
@pytest.mark.parametrize("when", NAMES)
def test_what_speechbrains_checkpointer_left_half_is_set_aside(
    tmp_path, when, half, monkeypatch, caplog
):
    """A run that was killed under SpeechBrain's own checkpointer, gone on with under ours."""
    Checkpointer(tmp_path, objects(1.0)).save_checkpoint(name="whole")
    plain = Checkpointer(tmp_path, objects(2.0))
    killed_at(lambda: plain.save_checkpoint(name="half"), when, half, monkeypatch)
    assert "CKPT+half" in names(tmp_path)
    again = whole(tmp_path)
    if (when, half) == ("counter", True):  # a number of one digit cannot be cut
        (tmp_path / "CKPT+half" / "counter.ckpt").unlink()
    with caplog.at_level(logging.WARNING):
        again.recover_if_possible()
    assert values(again) == (1.0, 1, 1.0)
    assert names(tmp_path) == ["CKPT+whole", "damaged+CKPT+half"]
    said = [record.message for record in caplog.records if "is not used" in record.message]
    assert len(said) == 1 and "CKPT+half" in said[0]


def cut(file):
    file.write_bytes(file.read_bytes()[:-1])


def empty(file):
    file.write_bytes(b"")


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))


def remove(file):
    file.unlink()


FILES = ("CKPT.yaml", CHECKSUMS, *(f"{name}.ckpt" for name in NAMES))
DAMAGES = [
    (file, harm)
    for file in FILES
    for harm in (cut, empty, flip, remove)
    # a cut or flipped note of checksums may still say the same
    if not (file == CHECKSUMS and harm in (cut, flip, remove))
    # SpeechBrain takes a folder without it for none of its own
    and not (file == "CKPT.yaml" and harm is remove)
]


@pytest.mark.parametrize(("file", "harm"), DAMAGES, ids=lambda x: getattr(x, "__name__", x))
def test_a_damaged_checkpoint_is_set_aside_and_the_next_best_taken(tmp_path, file, harm):
    whole(tmp_path, 1.0).save_checkpoint(meta={"WER": 20.0}, name="older")
    harm(whole(tmp_path, 2.0).save_checkpoint(meta={"WER": 10.0}, name="best").path / file)
    again = whole(tmp_path)
    assert again.recover_if_possible(min_key="WER").path.name == "CKPT+older"
    assert values(again) == (1.0, 1, 1.0)
    assert names(tmp_path) == ["CKPT+older", "damaged+CKPT+best"]


@pytest.mark.parametrize(("file", "harm"), DAMAGES, ids=lambda x: getattr(x, "__name__", x))
def test_without_another_one_a_test_fails_and_a_training_starts_anew(tmp_path, file, harm, caplog):
    harm(whole(tmp_path, 2.0).save_checkpoint(meta={"WER": 10.0}, name="best").path / file)
    again = whole(tmp_path)
    with pytest.raises(MAMError, match=r"the only checkpoint '.*CKPT\+best' cannot be used: "):
        again.recover_if_possible(min_key="WER")
    with caplog.at_level(logging.WARNING):
        assert again.recover_if_possible() is None
    assert "the training starts from the beginning" in caplog.text


def test_another_recipes_checkpoint_is_not_taken_for_a_cut_one(tmp_path):
    """It lacks an object, which SpeechBrain says; it must not be set aside."""
    plain = {name: thing for name, thing in objects(1.0).items() if name != "counter"}
    Checkpointer(tmp_path, plain | {"other": torch.nn.Linear(1, 1)}).save_checkpoint()
    with pytest.raises((KeyError, RuntimeError), match="counter"):
        whole(tmp_path).recover_if_possible()
    assert names(tmp_path)[0].startswith("CKPT+")
    partly = whole(tmp_path, allow_partial_load=True)
    assert partly.recover_if_possible() is not None and values(partly) == (1.0, 0, 1.0)


@pytest.mark.parametrize("step", [0, 1, 2])
def test_a_name_that_is_given_again_is_replaced_whole(tmp_path, step, monkeypatch):
    """Killed before, between and after the two renames: one of both is there, with its bits."""
    whole(tmp_path, 1.0).save_checkpoint(name="last")
    rename, calls = os.rename, []

    def dying(self, target):
        if len(calls) == step:
            os.kill(os.getpid(), signal.SIGKILL)
        calls.append(target)
        rename(self, target)

    def program():
        from pathlib import Path

        Path.rename = dying
        whole(tmp_path, 2.0).save_checkpoint(name="last")
        if len(calls) == step:
            os.kill(os.getpid(), signal.SIGKILL)

    assert in_a_fork(program) == -signal.SIGKILL
    again = whole(tmp_path)
    again.recover_if_possible()
    assert values(again) == ((1.0, 1, 1.0) if step < 2 else (2.0, 2, 2.0))
    again.save_checkpoint(name="last")
    assert names(tmp_path) == ["CKPT+last"]


def test_what_was_replaced_is_there_before_anything_is_saved(tmp_path):
    """A kill between two renames, and the next run only evaluates."""
    whole(tmp_path, 1.0).save_checkpoint(name="last")
    (tmp_path / "CKPT+last").rename(tmp_path / ".CKPT+last.old")
    again = whole(tmp_path)
    assert again.recover_if_possible() is not None and values(again) == (1.0, 1, 1.0)


FULL = [
    OSError(28, "No space left on device"),
    RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0"),
    RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
]


@pytest.mark.parametrize("error", FULL, ids=["system", "position", "writer"])
def test_a_full_disk_leaves_no_checkpoint(tmp_path, monkeypatch, error):
    whole(tmp_path, 1.0).save_checkpoint(name="before")
    second = whole(tmp_path, 2.0)

    def full(module, path):
        path.write_bytes(b"half")
        raise error

    monkeypatch.setitem(DEFAULT_SAVE_HOOKS, torch.nn.Module, full)
    with pytest.raises(MAMError, match=f"'{tmp_path}': a checkpoint could not be written"):
        second.save_checkpoint(name="second")
    assert names(tmp_path) == ["CKPT+before"]
    monkeypatch.undo()
    second.save_checkpoint(name="second")
    assert names(tmp_path) == ["CKPT+before", "CKPT+second"]


def test_the_class_keeps_its_name_and_twice_is_once(tmp_path):
    checkpointer = whole(tmp_path)
    kind = type(checkpointer)
    write_whole(checkpointer)
    assert type(checkpointer) is kind and isinstance(checkpointer, WholeCheckpointer)
    assert kind.__name__ == "Checkpointer"


def test_a_copied_folder_stays_whole(tmp_path):
    saved = whole(tmp_path / "a", 3.0).save_checkpoint(name="x")
    shutil.copytree(saved.path, tmp_path / "b" / saved.path.name)
    again = whole(tmp_path / "b")
    again.recover_if_possible()
    assert values(again) == (3.0, 3, 3.0)


PROGRAM = """
import os, signal, sys, time, torch, speechbrain as sb
from speechbrain.utils.checkpoints import Checkpointer
from speechbrain.utils.epoch_loop import EpochCounter
from speechbrain_mam import MAMBrain

folder, name, at = sys.argv[1], sys.argv[2], int(sys.argv[3])

class Task(MAMBrain, sb.Brain):
    def compute_forward(self, batch, stage):
        return self.modules.model(batch[0] + 0.1 * torch.rand_like(batch[0]))
    def compute_objectives(self, predictions, batch, stage):
        return (predictions - batch[1]).square().mean()
    def on_fit_batch_end(self, batch, outputs, loss, should_step):
        self.seen = getattr(self, "seen", 0) + 1
        if self.seen == at and int(os.environ.get("RANK", 0)) == RANK:
            time.sleep(3) if name == "straggle" else os.kill(os.getpid(), getattr(signal, name))
    def on_stage_start(self, stage, epoch=None):
        if stage == sb.Stage.TRAIN:
            print("epoch", epoch, file=sys.stderr)
    def on_stage_end(self, stage, loss, epoch=None):
        if stage == sb.Stage.VALID:
            self.checkpointer.save_and_keep_only(importance_keys=[])

options = {"device": "cpu", "grad_accumulation_factor": ACC, "distributed_backend": "gloo"}
sb.utils.distributed.ddp_init_group(options)
torch.manual_seed(0)
data = [(torch.randn(4, 3), torch.randn(4, 1)) for _ in range(5)]
model, counter = torch.nn.Linear(3, 1), EpochCounter(3)
checkpointer = Checkpointer(folder, {"model": model, "counter": counter})
brain = Task(
    {"model": model}, lambda p: torch.optim.Adam(p, 0.1),
    {"exact_resume": True, "seed": 7}, options, checkpointer,
)
brain.fit(
    counter, data, data[:1], progressbar=False,
    train_loader_kwargs={"batch_size": None}, valid_loader_kwargs={"batch_size": None},
)
if int(os.environ.get("RANK", 0)) == 0:
    print([p.tolist() for p in model.parameters()])
"""


def train(folder, name="SIGTERM", at=0, accumulation=1, rank=0, **options):
    code = PROGRAM.replace("ACC", str(accumulation)).replace("== RANK", f"== {rank}")
    file = folder.with_suffix(".py")
    file.write_text(code)
    return run_python(file, str(folder), name, str(at), **options)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    done = {n: train(tmp_path_factory.mktemp("plain"), accumulation=n) for n in (1, 5)}
    assert all(one.returncode == 0 for one in done.values()), done
    return {n: one.stdout for n, one in done.items()}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize(
    ("name", "code", "at", "accumulation"),
    [
        *(("SIGTERM", 143, at, 1) for at in (1, 5, 7)),
        ("SIGTERM", 143, 7, 5),
        ("SIGINT", 130, 3, 1),
        ("SIGUSR1", 0, 8, 1),
    ],
)
def test_a_signal_saves_a_checkpoint_and_the_same_command_goes_on(
    tmp_path, name, code, at, accumulation, undisturbed
):
    stopped = train(tmp_path, name, at, accumulation)
    assert stopped.returncode == code and stopped.stdout == ""
    assert stopped.stderr.count(f"{name} after step") == 1, stopped.stderr
    assert "Traceback" not in stopped.stderr
    again = train(tmp_path, accumulation=accumulation)
    assert again.returncode == 0 and again.stdout == undisturbed[accumulation]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_rank_stops_both_at_one_step(tmp_path, rank):
    plain = train(tmp_path / "plain", ranks=2)
    assert plain.returncode == 0, plain.stderr
    stopped = train(tmp_path / "run", at=4, rank=rank, ranks=2)
    assert stopped.returncode == 1 and stopped.stdout == ""
    assert stopped.stderr.count("SIGTERM after step 1 of this epoch") == 1, stopped.stderr
    assert all(name.startswith(("CKPT+", ".running.")) for name in names(tmp_path / "run"))
    again = train(tmp_path / "run", ranks=2)
    assert again.returncode == 0 and again.stdout == plain.stdout


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_killed_ends_both_and_the_same_command_goes_on(tmp_path, rank):
    plain = train(tmp_path / "plain", ranks=2)
    killed = train(tmp_path / "run", "SIGKILL", at=8, rank=rank, ranks=2)
    assert killed.returncode == 1 and killed.stdout == ""
    again = train(tmp_path / "run", ranks=2)
    assert again.returncode == 0 and again.stdout == plain.stdout
    assert all(name[0] == "." or name.startswith("CKPT+") for name in names(tmp_path / "run"))
    assert not list((tmp_path / "run").glob("*.part"))


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_late_is_waited_for(tmp_path, rank):
    plain = train(tmp_path / "plain", ranks=2)
    late = train(tmp_path / "run", "straggle", at=5, rank=rank, ranks=2)
    assert late.returncode == 0 and late.stdout == plain.stdout


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize(("before", "after", "epoch"), [(2, 1, 3), (1, 2, 2)])
def test_another_number_of_ranks_goes_on(tmp_path, before, after, epoch):
    """With other batches a rank, so with other figures; but from what was learned."""
    stopped = train(tmp_path / "run", "SIGTERM", at=7, ranks=before if before > 1 else 0)
    assert stopped.returncode in (1, 143)
    again = train(tmp_path / "run", ranks=after if after > 1 else 0)
    assert again.returncode == 0, again.stderr
    assert f"epoch {epoch}" in again.stderr and f"epoch {epoch - 1}" not in again.stderr
