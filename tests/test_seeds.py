"""Several seeds: what is run, skipped, resumed and refused, with a recipe that only pretends."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import REPO

from speechbrain_mam import MAMError, cli
from speechbrain_mam.runs.jobs import WITH_PARENT, run_jobs
from speechbrain_mam.runs.seeds import label_of, main, plan_jobs

FAKE_RECIPE = """
import json, os, re, subprocess, sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from made_up_runs import TestSet, write_run

yaml, words = sys.argv[1], sys.argv[2:]
given = dict(zip([w[2:] for w in words[::2]], words[1::2]))
folder, seed = Path(given["output_folder"]), int(given["seed"])
with Path({starts!r}).open("a") as stream:
    stream.write(f"{{folder.parent.name}}/{{seed}} {{time.time()}}\\n")
if "workers" in given:
    worker = subprocess.Popen(["sleep", "60"])
    Path({starts!r} + ".pids").write_text(f"{{os.getpid()}} {{worker.pid}}")
if "sleep" in given:
    time.sleep(float(given["sleep"]))
if given.get("fail") == str(seed) and not Path({starts!r} + ".mended").exists():
    print("the loss is not finite")
    raise SystemExit(3)
if given.get("forget"):
    raise SystemExit(0)
method = re.search("method: (.*)", Path(yaml).read_text())[1]
test_set = TestSet(30)
shift = 0.4 if method == "finetune" else 0.38
tests = {{"untouched": test_set.utterances(0.5, 0), method: test_set.utterances(shift, seed)}}
lambdas = {{"layer 0": 0.9}} if method != "finetune" else None
write_run(folder, tests, method, seed, given.get("control", "none"), None, lambdas)
"""


class Lab:
    """A fake recipe, its YAMLs, and what was started."""

    def __init__(self, folder: Path):
        self.folder, self.out, self.starts_file = folder, folder / "out", folder / "starts"
        self.script = folder / "train.py"
        code = FAKE_RECIPE.format(tests=str(REPO / "tests"), starts=str(self.starts_file))
        self.script.write_text(code, encoding="utf-8")
        self.yamls = {}
        for method in ("finetune", "mam_learnable"):
            self.yamls[method] = folder / f"{method}.yaml"
            self.yamls[method].write_text(f"method: {method}\n", encoding="utf-8")

    def starts(self) -> list[str]:
        if not self.starts_file.exists():
            return []
        return [line.split()[0] for line in self.starts_file.read_text().splitlines()]

    def plan(self, *specs: str, seeds=(1, 2), **options):
        return plan_jobs(self.script, specs, list(seeds), self.out, **options)


@pytest.fixture()
def lab(tmp_path) -> Lab:
    return Lab(tmp_path)


@pytest.mark.slow
def test_one_command_runs_all_and_reports(lab, capsys):
    finetune, learnable = map(str, lab.yamls.values())
    command = [str(lab.script), finetune, learnable, f"{learnable} --control random"]
    command += ["--seeds", "1", "2", "--out", str(lab.out), "--", "--number_of_epochs", "3"]
    main(command)
    labels = ["finetune", "mam_learnable", "mam_learnable_control_random"]
    assert lab.starts() == [f"{label}/{seed}" for seed in (1, 2) for label in labels]
    assert "| mam_learnable control random | 2 |" in capsys.readouterr().out
    assert (lab.out / "report" / "report.html").is_file()
    log = (lab.out / "mam_learnable_control_random" / "2.log").read_text()
    assert "--control random --number_of_epochs 3" in log
    main(command)  # everything is there: nothing is started, the report is written again
    assert len(lab.starts()) == 6


@pytest.mark.slow
def test_the_same_by_the_command_on_several_data_folders(lab, capsys):
    """One series and one report a folder; names with a point in them are told apart."""
    folders = [lab.folder / f"VCTK-0.{minor}" for minor in (92, 80)]
    for folder in folders:
        folder.mkdir()
    specs = [*map(str, lab.yamls.values()), f"{lab.yamls['mam_learnable']} --control random"]
    command = ["compare", str(lab.script), *specs, "--seeds", "1", "2", "--out", str(lab.out)]
    command += ["--data", *map(str, folders), "--primary", "mam_learnable control random"]
    assert cli.main([*command, "--", "--lr", "1"]) == 0
    said = capsys.readouterr().out
    for folder in folders:
        out = lab.out / folder.name
        record = json.loads((out / "finetune" / "1.json").read_text())
        assert record["overrides"] == ["--data_folder", str(folder), "--lr", "1"]
        content = json.loads((out / "report" / "report.json").read_text())
        assert content["primary"]["system"] == "mam_learnable control random"
        assert f"written to '{out / 'report'}'" in said
    assert len(lab.starts()) == 12


def test_data_folders_that_cannot_be(lab, capsys):
    command = ["compare", str(lab.script), str(lab.yamls["finetune"]), "--seeds", "1"]
    command += ["--out", str(lab.out), "--data", "mini_vctk", str(lab.folder / "b" / "mini_vctk")]
    assert cli.main(command) == 2
    assert "mini_vctk': no such folder; the package embeds mini_" in capsys.readouterr().err
    (lab.folder / "b" / "mini_vctk").mkdir(parents=True)
    assert cli.main(command) == 2
    assert "b/mini_vctk' and another folder would both be" in capsys.readouterr().err
    assert cli.main([*command[:-1], "--", "--data_folder=x"]) == 2
    assert "'--data_folder=x' is set for each series" in capsys.readouterr().err
    assert cli.main([*command[:2], "no.yaml", *command[3:-1]]) == 2
    assert "'no.yaml': no such YAML" in capsys.readouterr().err
    assert not lab.out.exists()


def test_a_failure_stops_and_the_same_command_goes_on(lab):
    spec = f"{lab.yamls['finetune']} --fail 2"
    jobs = lab.plan(spec, seeds=(1, 2, 3))
    with pytest.raises(
        MAMError, match=r"'finetune_fail_2' with seed 2 failed \(exit code 3\)"
    ) as e:
        run_jobs(jobs, show_progress=False)
    assert "exit code 3" in str(e.value) and str(e.value).endswith("the loss is not finite")
    assert str(jobs[1].log) in str(e.value)
    assert lab.starts() == ["finetune_fail_2/1", "finetune_fail_2/2"]
    Path(f"{lab.starts_file}.mended").touch()
    run_jobs(lab.plan(spec, seeds=(1, 2, 3)), show_progress=False)
    assert lab.starts()[2:] == ["finetune_fail_2/2", "finetune_fail_2/3"]


def test_a_run_without_results_is_a_failure(lab):
    with pytest.raises(MAMError, match=r"no results\.json"):
        run_jobs(lab.plan(f"{lab.yamls['finetune']} --forget 1"), show_progress=False)


@pytest.mark.slow
def test_two_at_once(lab):
    start = time.monotonic()
    run_jobs(lab.plan(f"{lab.yamls['finetune']} --sleep 3"), at_once=2, show_progress=False)
    lines = lab.starts_file.read_text().splitlines()
    first, second = (float(line.split()[1]) for line in lines)
    assert abs(first - second) < 3 <= time.monotonic() - start


def test_a_failure_ends_the_others(lab):
    jobs = lab.plan(f"{lab.yamls['finetune']} --fail 1", f"{lab.yamls['mam_learnable']} --sleep 60")
    start = time.monotonic()
    with pytest.raises(MAMError, match="failed"):
        run_jobs(jobs, at_once=2, show_progress=False)
    assert time.monotonic() - start < 30
    assert not any(job.finished for job in jobs)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interruption_ends_what_was_started(lab, number):
    """Also what a run has started, as torchrun its workers; the signal reaches the command only."""
    command = [sys.executable, "-m", "speechbrain_mam.seeds", str(lab.script)]
    command += [f"{lab.yamls['finetune']} --workers 1 --sleep 60", "--seeds", "1", "2"]
    command += ["--out", str(lab.out)]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # also under nohup and in `… &`
    )
    pids = Path(f"{lab.starts_file}.pids")
    wait_until(lambda: pids.is_file() and len(pids.read_text().split()) == 2)
    process.send_signal(number)
    said = process.communicate(timeout=30)[1]
    assert process.returncode == 130
    assert said.endswith("interrupted; the same command goes on from here\n")
    wait_until(lambda: not any(is_alive(int(pid)) for pid in pids.read_text().split()))
    assert lab.starts() == ["finetune_workers_1_sleep_60/1"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends the children of a killed one")
def test_killed_outright_its_runs_end_with_it(lab):
    command = [sys.executable, "-m", "speechbrain_mam.seeds", str(lab.script)]
    command += [f"{lab.yamls['finetune']} --sleep 60 --workers 1", "--seeds", "1"]
    process = subprocess.Popen([*command, "--out", str(lab.out)], stderr=subprocess.DEVNULL)
    pids = Path(f"{lab.starts_file}.pids")
    wait_until(lambda: pids.is_file() and len(pids.read_text().split()) == 2)
    process.kill()
    process.wait()
    run = int(pids.read_text().split()[0])
    wait_until(lambda: not is_alive(run))


def test_a_run_whose_series_is_gone_already_is_not_begun(tmp_path):
    code = f"open({str(tmp_path / 'begun')!r}, 'w')"
    other = str(os.getppid())  # some process that is not the one that starts it
    program = [sys.executable, "-c", code]
    subprocess.run([sys.executable, str(WITH_PARENT), other, *program], check=True)
    assert (tmp_path / "begun").exists() == (sys.platform != "linux")
    subprocess.run([sys.executable, str(WITH_PARENT), str(os.getpid()), *program], check=True)
    assert (tmp_path / "begun").exists()


def wait_until(holds) -> None:
    end = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    state = Path(f"/proc/{pid}/stat")
    try:
        return state.read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_other_overrides_than_before_are_refused(lab):
    run_jobs(lab.plan(str(lab.yamls["finetune"]), seeds=(1,), shared=["--lr", "1"]), 1, False)
    lab.plan(str(lab.yamls["finetune"]), shared=["--lr", "1"])
    folder = lab.out / "finetune" / "1"
    with pytest.raises(MAMError, match=f"'{folder}' holds a run with other overrides: '--lr 1'"):
        lab.plan(str(lab.yamls["finetune"]), shared=["--lr", "2"])
    with pytest.raises(MAMError, match="other nproc_per_node: '0', now '2'"):
        lab.plan(str(lab.yamls["finetune"]), shared=["--lr", "1"], nproc_per_node=2)
    lab.yamls["finetune"].write_text("method: finetune\nlr: 3\n")
    with pytest.raises(MAMError, match="other YAML content"):
        lab.plan(str(lab.yamls["finetune"]), shared=["--lr", "1"])
    (lab.out / "finetune" / "1.json").unlink()
    with pytest.raises(MAMError, match=f"'{folder}' holds a run that was not started here"):
        lab.plan(str(lab.yamls["finetune"]), shared=["--lr", "1"])
    assert len(lab.starts()) == 1


def test_torchrun(lab):
    (job,) = lab.plan(str(lab.yamls["finetune"]), seeds=(1,), nproc_per_node=2)
    assert job.command[1:5] == (
        *("-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"),
    )
    assert job.command[5:7] == (str(lab.script), str(lab.yamls["finetune"]))


def test_bad_input(lab):
    yaml = str(lab.yamls["finetune"])
    for specs, options, message in (
        ([yaml, yaml], {}, "both 'finetune'"),
        (["nowhere.yaml"], {}, "'nowhere.yaml': no such YAML"),
        ([f"{yaml} --seed 3"], {}, "use --seeds"),
        ([yaml], {"shared": ["--output_folder=x"]}, "use --seeds and --out"),
        ([yaml], {"seeds": (1, 1)}, "1 is named more than once"),
    ):
        with pytest.raises(MAMError, match=message):
            lab.plan(*specs, **options)
    with pytest.raises(MAMError, match="no such recipe"):
        plan_jobs(lab.folder / "none.py", [yaml], [1], lab.out)
    assert not lab.out.exists()


def test_labels_are_safe_as_file_names():
    label = label_of(Path("a/b.yaml"), ["--data_folder", "/data/x y", "--layers", "0-2,5"])
    assert label == "b_data_folder_data-x-y_layers_0-2-5"
    long = [label_of(Path("b.yaml"), ["--key", "x" * 200 + end]) for end in "ab"]
    assert long[0] != long[1] and all(len(name) < 90 for name in long)


def test_the_command_line_says_what_is_wrong_in_one_line(lab):
    command = [sys.executable, "-m", "speechbrain_mam.seeds", str(lab.script), "no.yaml"]
    done = subprocess.run(
        [*command, "--seeds", "1", "--out", str(lab.out)], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.strip() == "'no.yaml': no such YAML"


def test_the_record_says_what_was_asked(lab):
    run_jobs(lab.plan(f"{lab.yamls['finetune']} --x 1", seeds=(1,), shared=["--y", "2"]), 1, False)
    record = json.loads((lab.out / "finetune_x_1" / "1.json").read_text())
    assert record["overrides"] == ["--x", "1", "--y", "2"]
    assert record["yaml"] == str(lab.yamls["finetune"].resolve())
