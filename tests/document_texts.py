"""What is checked of the YAML and the messages in the documents."""

from __future__ import annotations

import ast
import re
import tempfile
from pathlib import Path
from unittest.mock import MagicMock

import pytest
from conftest import REPO
from document_blocks import Block
from hyperpyyaml import load_hyperpyyaml, resolve_references
from torch import nn

from speechbrain_mam import MAM, Donor
from speechbrain_mam.architectures.live import find_attention
from speechbrain_mam.merging.planner import make_plan
from speechbrain_mam.runs import recipe
from speechbrain_mam.runs.yaml_files import base_and_overrides
from speechbrain_mam.runs.zeroshot import KEYS as SEARCH_KEYS
from speechbrain_mam.runs.zeroshot import read_search

MAM_KEYS = ("lam", "layers", "projections", "layer_map", "bias", "donor_scale")
LAYERS = 24
"""Of the encoder that the examples' layers are chosen from."""


def known_keys() -> set[str]:
    """Top-level keys of the shipped YAMLs."""
    keys = set()
    for yaml in (REPO / "hparams").rglob("*.yaml"):
        keys |= set(re.findall(r"^(\w+):", yaml.read_text(encoding="utf-8"), flags=re.M))
    return keys


def check_yaml(text: str, encoder: nn.Module, donor: Donor) -> None:
    """Known keys; a merge that fits; a search that is one; what is included is there."""
    if text.startswith("!include:"):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "mine.yaml")
            file.write_text(text.replace("!include:", f"!include:{REPO}/"), encoding="utf-8")
            base_and_overrides(file)
        text = text.partition("\n")[2]
    found = set(re.findall(r"^(\w+):", text, flags=re.M))
    assert found <= known_keys(), f"no YAML has {sorted(found - known_keys())}"
    names = set(re.findall(r"!ref <(\w+)>", text)) - found
    assert names <= {"encoder", "wav2vec2", "hubert"}, names
    given = "".join(f"{name}: !new:torch.nn.Identity\n" for name in names)
    content = load_hyperpyyaml(given + text)
    if isinstance(mam := content.get("mam"), MAM):
        donors = [donor] * len(mam._donors) if mam._several else donor
        assert MAM(encoder, donors, donor_shares=mam.donor_shares, **mam.options).plan.entries
    elif options := {key: content[key] for key in MAM_KEYS if key in content}:
        make_plan(find_attention(encoder), donor.index, **options)
    if found & set(SEARCH_KEYS):
        shipped = (REPO / "hparams" / "mam_zeroshot.yaml").read_text(encoding="utf-8")
        whole = load_hyperpyyaml(resolve_references(shipped.partition("####### Model")[0]))
        read_search({**whole, **content}, LAYERS)


def error_patterns() -> list[re.Pattern[str]]:
    """Every message of the package's errors, as an expression that its texts match."""

    def pattern(node):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return re.escape(node.value)
        if isinstance(node, ast.JoinedStr):
            return "".join(map(pattern, node.values))
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            return pattern(node.left) + pattern(node.right)
        return ".*"

    found = []
    for file in (REPO / "speechbrain_mam").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if getattr(getattr(node, "func", None), "id", "") in ("MAMError", "Unclear"):
                text = pattern(node.args[0])
                if len(text.replace(".*", "").replace("\\", "")) >= 15:
                    found.append(re.compile(text, re.S))
    return found


PATTERNS = error_patterns()


def check_text(block: Block) -> None:
    """Error messages must be the code's; the README's figures must be in the form of a recipe's."""
    if block.mark == "message":
        for line in block.text.splitlines():
            assert any(p.fullmatch(line) for p in PATTERNS), f"{block}: no error says '{line}'"
    else:
        assert block.page == REPO / "README.md", f"{block}: what is this? Mark it"
        assert block.text.strip() == summary_like(block.text).strip()


def summary_like(text: str) -> str:
    """What ``summarize`` logs with the figures of a text."""
    results = {
        name: {metric: float(value) for metric, value in re.findall(r"(\w+) ([\d.]+)", rest)}
        for name, rest in re.findall(r"^  (\w+) +(loss .*)$", text, flags=re.M)
    }
    lambdas = {n: float(v) for n, v in re.findall(r"^  (layer \d+) +([\d.]+)$", text, flags=re.M)}
    folder = text.strip().rpartition("Everything else: ")[2]
    brain = MagicMock()  # all that is written into files is patched away below
    brain.mam.live.values.return_value = lambdas
    brain.hparams.output_folder = folder
    said = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "write_text_beside", lambda *_: None)
        patch.setattr(recipe.json, "dumps", lambda *_, **__: "")
        patch.setattr(recipe.logger, "info", said.append)
        recipe.summarize(brain, results)
    return said[0]
