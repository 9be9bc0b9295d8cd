"""The recipes that this project did not write, and what each is given: the table of the proof.

A row is data. ``tests/proof/run.py`` gives the recipe its lines, trains, resumes and evaluates it;
``python examples/proof.py`` prints what came of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

YAMLS = Path(__file__).with_name("yamls")


@dataclass(frozen=True)
class Row:
    """A recipe of SpeechBrain's and how it is tried.

    Arguments
    ---------
    name : str
        What the table calls it.
    script, yaml : str
        The recipe's two files, the YAML from the script's folder.
    target : str
        The YAML's key of the encoder.
    stand_ins : tuple of str
        Files of ``tests/proof/yamls`` that stand for the YAML, which no source distribution has.
    options : dict
        Overrides; ``{parts}`` stands for the folder of models, audio and manifests.
    changed : tuple of (str, str)
        Lines of either file, as they are and as they must be, besides those that are added.
    because : str
        Why they must be changed.
    refusal : str
        Where the recipe is refused as it is: what the error must say.
    needs : tuple of str
        Modules that the recipe imports and that no package of this project's needs.
    telling : bool
        Whether it runs with the other tests.
    """

    name: str
    script: str
    yaml: str
    target: str
    stand_ins: tuple[str, ...]
    options: dict[str, str] = field(default_factory=dict)
    changed: tuple[tuple[str, str], ...] = ()
    because: str = ""
    refusal: str = ""
    needs: tuple[str, ...] = ()
    telling: bool = False

    def stand_in(self) -> str:
        """The stand-in YAML, whole."""
        names = ("common", *self.stand_ins)
        return "".join((YAMLS / f"{name}.yaml").read_text(encoding="utf-8") for name in names)


_WHISPER = "train_with_whisper.py"
_LIBRISPEECH = "recipes/LibriSpeech/ASR"
_ADAPTERS = ("    all_linear: True", '    target_layers: ["*.fc1", "*.fc2", "*.out_proj"]')
_ACCURACY = (
    '            stage_stats["acc"] = sum(self.acc_metric) / len(self.acc_metric)',
    '            stage_stats["acc"] = float(sum(self.acc_metric) / len(self.acc_metric))',
)

ROWS = (
    Row(
        "CommonVoice, CTC with WavLM",
        "recipes/CommonVoice/ASR/CTC/train_with_wav2vec.py",
        "hparams/train_en_with_wav2vec.yaml",
        "wav2vec2",
        ("commonvoice_ctc",),
        telling=True,
    ),
    Row(
        "CommonVoice, Whisper",
        f"recipes/CommonVoice/ASR/transformer/{_WHISPER}",
        "hparams/train_hf_whisper.yaml",
        "whisper",
        ("whisper", "whisper_plain", "whisper_commonvoice"),
        telling=True,
    ),
    Row(
        "LibriSpeech, Whisper",
        f"{_LIBRISPEECH}/transformer/{_WHISPER}",
        "hparams/train_hf_whisper.yaml",
        "whisper",
        ("whisper", "whisper_plain", "whisper_librispeech"),
    ),
    Row(
        "LibriSpeech, Whisper, LoRA in every linear layer",
        f"{_LIBRISPEECH}/transformer/{_WHISPER}",
        "hparams/train_whisper_lora.yaml",
        "whisper",
        ("whisper", "whisper_lora", "whisper_librispeech"),
        refusal="a projection has either an adapter or MAM",
    ),
    Row(
        "LibriSpeech, Whisper, LoRA beside MAM",
        f"{_LIBRISPEECH}/transformer/{_WHISPER}",
        "hparams/train_whisper_lora.yaml",
        "whisper",
        ("whisper", "whisper_lora", "whisper_librispeech"),
        changed=(_ADAPTERS,),
        because="adapters stand in the other layers",
    ),
    Row(
        "AISHELL-1, Transformer",
        "recipes/AISHELL-1/ASR/transformer/train.py",
        "hparams/train_ASR_transformer.yaml",
        "Transformer",
        ("transformer", "transformer_aishell"),
        telling=True,
    ),
    Row(
        "LibriSpeech, Transformer",
        f"{_LIBRISPEECH}/transformer/train.py",
        "hparams/transformer.yaml",
        "Transformer",
        ("transformer", "transformer_librispeech"),
    ),
    Row(
        "LibriSpeech, Conformer",
        f"{_LIBRISPEECH}/transformer/train.py",
        "hparams/conformer_small.yaml",
        "Transformer",
        ("transformer", "transformer_librispeech"),
        {"Transformer": "{{encoder_module: conformer, attention_type: RelPosMHAXL}}"},
        telling=True,
    ),
    Row(
        "LibriSpeech, CTC with SpeechBrain's wav2vec 2.0",
        f"{_LIBRISPEECH}/CTC/train_with_wav2vec.py",
        "hparams/train_sb_wav2vec.yaml",
        "encoder_wrapper",
        ("librispeech_ctc_speechbrain",),
    ),
    Row(
        "LibriSpeech, CTC with WavLM, learned downsampling",
        f"{_LIBRISPEECH}/CTC/train_with_wav2vec.py",
        "hparams/downsampled/train_hf_wavlm_conv_downsampling.yaml",
        "wav2vec2",
        ("librispeech_ctc_wavlm",),
    ),
    Row(
        "TIMIT, phonemes with wav2vec 2.0",
        "recipes/TIMIT/ASR/seq2seq/train_with_wav2vec2.py",
        "hparams/train_with_wav2vec2.yaml",
        "wav2vec2",
        ("timit",),
    ),
    Row(
        "SLURP, meaning with HuBERT",
        "recipes/SLURP/direct/train_with_wav2vec2.py",
        "hparams/train_with_wav2vec2.yaml",
        "wav2vec2",
        ("slurp",),
        needs=("jsonlines", "pandas"),
    ),
    Row(
        "CommonVoice, wav2vec 2.0 pre-training",
        "recipes/CommonVoice/self-supervised-learning/wav2vec2/train_hf_wav2vec2.py",
        "hparams/wav2vec2_base.yaml",
        "wav2vec2",
        ("wav2vec2_pretraining",),
        changed=(_ACCURACY,),
        because="SpeechBrain 1.1 reads no checkpoint whose meta holds a tensor",
    ),
    Row(
        "LibriSpeech, CTC with wav2vec 2.0",
        f"{_LIBRISPEECH}/CTC/train_with_wav2vec.py",
        "hparams/train_hf_wav2vec.yaml",
        "wav2vec2",
        ("librispeech_ctc",),
        {"enc": "{{input_shape: [null, null, 16]}}"},
    ),
    Row(
        "IEMOCAP, emotions with wav2vec 2.0",
        "recipes/IEMOCAP/emotion_recognition/train_with_wav2vec2.py",
        "hparams/train_with_wav2vec2.yaml",
        "wav2vec2",
        ("iemocap",),
        {"encoder_dim": "16"},
    ),
)
