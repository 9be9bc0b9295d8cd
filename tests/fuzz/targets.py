"""What the mutated files are given to, and which files those are."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import mutators
import originals
import weights

from speechbrain_mam.cli import main

OPTIONS = [
    *("--lam", "--layers", "--projections", "--layer-map", "--bias", "--donor-scale", "--method"),
    *("--align", "--width", "--json", "--grid", "--controls", "--batch-size", "--device"),
    *("--precision", "--manifest", "--data-folder", "--format", "--nothing"),
]
MERGE = ["merge", "target", "donor", "--lam", "0.9", "--out", "out"]
SPEECH = ["--manifest", "speech.csv", "--batch-size", "4"]
COMMAND_LINES = [
    ["plan", "target", "donor"],
    ["plan", "target", "donor", "--lam", "{query: 0.9, key: 0.8, value: 1}", "--layers", "last:2"],
    [*MERGE, "--layers", "0-1", "--projections", "qk", "--layer-map", "first"],
    ["probe", "target", "donor", *SPEECH],
    ["sweep", "target", "donor", *SPEECH, "--grid", "0.9", "--layers", "all", "last:1"],
    ["export", "run", "--format", "hf", "--out", "out"],
    ["report", "run", "--out", "out"],
    ["doctor"],
]


@dataclass(frozen=True)
class Target:
    """One reader of files.

    Arguments
    ---------
    make : callable
        Writes the files that are right into a folder.
    files : tuple of str
        Patterns of those that are mutated; none where it is the command line.
    run : callable
        Reads them, in the folder; gives an exit code, or nothing where it is no command.
    share : int
        How many of a hundred cases or so are its own; with 0 the right files are not tried first.
    kinds : list of mutators, optional
        In the place of those that go with the file's suffix.
    """

    name: str
    make: originals.Maker
    files: tuple[str, ...]
    run: Callable[[random.Random], int | None]
    share: int
    kinds: list[mutators.Mutator] | None = None


def _command(*argv: str) -> Callable[[random.Random], int]:
    return lambda rng: main(list(argv))


def _plan_or_merge(rng: random.Random) -> int:
    return main(["plan", "target", "donor"] if rng.random() < 0.6 else MERGE)


def _recogniser(rng: random.Random) -> None:
    from speechbrain_mam.lobes.hubert_ctc import HubertCTC

    encoder = HubertCTC("target")
    encoder.alphabet.decode(encoder.alphabet.encode(encoder.alphabet.spell("A")))


def _tokenizer(rng: random.Random) -> None:
    """A tokenizer is loaded, and used if that went well."""
    from speechbrain_mam.lobes.pieces import Pieces

    pieces = Pieces(Path("pieces.model"), originals.ALPHABET)
    pieces.decode(pieces.encode("A CAT IS HERE"))


def _ngram(rng: random.Random) -> None:
    """As before a test with ``beam_lm``."""
    from speechbrain_mam.ctc.language_model import check_language_model, check_words

    check_language_model(Path("words.arpa"))
    check_words(Path("words.arpa"), "ABCDEFGHIJKLMNOPQRSTUVWXYZ'")


def _classifier(rng: random.Random) -> None:
    from speechbrain_mam.lobes.beats import BEATsEncoder

    BEATsEncoder("donor/beats.pt")


def _ljspeech(rng: random.Random) -> None:
    from ljspeech_prepare import prepare_ljspeech

    prepare_ljspeech("corpus", "save", originals.ALPHABET)


def _vctk(rng: random.Random) -> None:
    from vctk_prepare import prepare_vctk

    prepare_vctk("corpus", "save", originals.ALPHABET)


def _esc50(rng: random.Random) -> None:
    from esc50_prepare import prepare_esc50

    prepare_esc50("corpus", "save", 1)


def _recording(rng: random.Random) -> None:
    """Checked as a preparation does, and read as a training does."""
    from speechbrain_mam.tasks.audio import load_audio
    from speechbrain_mam.tasks.recordings import check_audio

    for file in sorted(Path().rglob("one.*")):
        if rng.random() < 0.6:
            check_audio(file, "utterance one", decode_all=rng.random() < 0.5)
        load_audio(str(file), 16000, "utterance one")


def _recordings(folder: Path) -> None:
    import numpy as np
    import soundfile

    wave = 0.1 * np.random.default_rng(0).standard_normal((6000, 1))
    for suffix, subtype, channels in (
        ("wav", "PCM_16", 1), ("wav", "FLOAT", 2), ("flac", "PCM_16", 1), ("ogg", "VORBIS", 2)
    ):  # fmt: skip
        place = folder / f"{suffix}_{channels}"
        place.mkdir()
        soundfile.write(place / f"one.{suffix}", wave.repeat(channels, 1), 16000, subtype)


def _recipe(rng: random.Random) -> None:
    """A recipe's YAML with an odd override; the files are read as in a recipe's first lines."""
    from speechbrain_mam.runs.recipe import load_recipe
    from speechbrain_mam.tasks.asr import KEYS

    name = rng.choice(["finetune", "mam_learnable", "mam_zeroshot"])
    places = ["--data_folder", "corpus", "--speech_model", "target", "--output_folder", "out"]
    places += ["--donor_model", "donor"] if "mam" in name else []
    keys = ["lr", "lr_mam", "lam", "layers", "projections", "batch_size", "number_of_epochs",
            "precision", "seed", "sorting", "layer_map", "bias", "granularity", "lam_grid",
            "layer_choices", "controls", "random_draws", "race", "grad_accumulation_factor",
            "nothing", "test_untouched", "output_folder", "speech_model", "new_alphabet",
            "max_batch_length_s"]  # fmt: skip
    odd = str(rng.choice(mutators.ODD_VALUES)).replace(mutators.DIGITS, "9" * 4400)
    options = [] if rng.random() < 0.4 else [f"--{rng.choice(keys)}", odd]
    if "/" in odd or odd == "~":  # nothing is to be made outside of the case's folder
        options = []
    load_recipe([f"hparams/{name}.yaml", *places, *options], needed=KEYS)


def _report(rng: random.Random) -> int:
    return main(["report", *map(str, sorted(f.parent for f in Path().rglob("results.json"))),
                 "--out", "out"])  # fmt: skip


def _runs_alone(rng: random.Random) -> None:
    """What a report reads, without its pictures, which take seconds."""
    from speechbrain_mam.report.build import make_report

    make_report(sorted(file.parent for file in Path().rglob("results.json")), n_resamples=50)


def _command_line(rng: random.Random) -> int:
    argv = list(rng.choice(COMMAND_LINES))
    for _ in range(rng.choice([1, 1, 2])):
        _, argv = mutators.odd_argument(argv or ["plan"], rng, OPTIONS)
    try:
        return main(argv)
    except SystemExit as end:  # --help and --version
        return int(end.code or 0)


TARGETS = {
    target.name: target
    for target in (
        Target("command line", originals.speech, (), _command_line, 10),
        Target("config.json", originals.models, ("*/config.json",), _plan_or_merge, 12),
        Target("safetensors", originals.models, ("*/*.safetensors",), _plan_or_merge, 10),
        Target("shard index", originals.shards, ("*/*.index.json",), _plan_or_merge, 8),
        Target("pytorch_model.bin", originals.pickled, ("donor/*.bin",), _plan_or_merge, 8,
               weights.TORCH),
        Target("onnx", originals.vision, ("donor/*",), _command("plan", "target",
               "donor/vit.onnx"), 8),
        Target("onnx merge", originals.vision, ("donor/*.onnx",), _command("merge", "target",
               "donor/vit.onnx", "--lam", "0.9", "--out", "out"), 4),
        Target("beats donor", originals.sounds, ("donor/*.pt",), _command("merge", "target",
               "donor/beats.pt", "--lam", "0.9", "--out", "out"), 6),
        Target("beats encoder", originals.sounds, ("donor/*.pt",), _classifier, 8),
        Target("ctranslate2", originals.converted, ("donor/*",), _plan_or_merge, 8),
        Target("recogniser", originals.tokens, ("target/*.json",), _recogniser, 14),
        Target("recogniser weights", originals.tokens, ("target/*.safetensors",), _recogniser, 4),
        Target("sentencepiece", originals.language, ("*.model",), _tokenizer, 8),
        Target("arpa", originals.language, ("*.arpa",), _ngram, 6),
        Target("metadata.csv", originals.ljspeech, ("corpus/metadata.csv",), _ljspeech, 8),
        Target("vctk text", originals.vctk, ("corpus/**/*.txt",), _vctk, 8),
        Target("esc50.csv", originals.esc50, ("corpus/meta/esc50.csv",), _esc50, 8),
        Target("audio", _recordings, ("**/one.*",), _recording, 14),
        Target("corpus audio", originals.ljspeech, ("corpus/wavs/*",), _ljspeech, 3),
        Target("manifest", originals.speech, ("speech.csv", "prepared.json"),
               _command("probe", "target", "donor", *SPEECH), 6),
        Target("measured audio", originals.speech, ("corpus/wavs/*",),
               _command("sweep", "target", "donor", *SPEECH, "--data-folder", "corpus",
                        "--grid", "0.9"), 3),
        Target("recipe", originals.yamls, ("hparams/*.yaml",), _recipe, 8),
        Target("runs", originals.runs, ("**/*.json", "**/*.json", "**/lambdas.csv"),
               _runs_alone, 4),
        Target("report", originals.runs, ("**/*.json", "**/lambdas.csv"), _report, 1),
        Target("export", originals.exported, ("run/*.json", "run/*.yaml", "run/save/*",
               "run/save/*/*"), _command("export", "run", "--out", "out"), 6),
    )
    if target.name != "arpa" or find_spec("kenlm")  # an extra
}  # fmt: skip
