"""Write the folders of an exported run, all of them or none."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError

from speechbrain_mam.atomic import check_output, new_folder
from speechbrain_mam.errors import MAMError, one_of
from speechbrain_mam.export import events, speech
from speechbrain_mam.export.card import model_card
from speechbrain_mam.export.run import FinishedRun, open_run, quiet
from speechbrain_mam.export.speech_parts import LANGUAGE_MODEL

FORMATS = ("hf", "speechbrain", "both")

SPEECH_USE = """\
```python
from transformers import AutoModelForCTC, AutoProcessor

model = AutoModelForCTC.from_pretrained(FOLDER).eval()
processor = AutoProcessor.from_pretrained(FOLDER)
inputs = processor(wave, sampling_rate={rate}, return_tensors="pt")  # one channel
texts = processor.batch_decode(model(**inputs).logits.argmax(-1))
```
"""

ASR_USE = """\
```python
from speechbrain.inference.ASR import EncoderASR

recogniser = EncoderASR.from_hparams(source=FOLDER{more})
text = recogniser.transcribe_file("recording.wav")
```
"""

BEATS_USE = """\
`{file}` is a checkpoint `{{cfg, model, label_dict}}`, the layout of BEATs' published fine-tuned
models: the classifier is its `predictor`. The authors' code reads it, and SpeechBrain's, which is
the same model. Transformers has no BEATs.

```python
import torch
from speechbrain.lobes.models.beats import BEATs

beats = BEATs(f"{{FOLDER}}/{file}", freeze=False).eval()
labels = torch.load(f"{{FOLDER}}/{file}")["label_dict"]
# wave: [clips, samples] at 16 kHz in [−1, 1]
_, scores, _ = beats.extract_features(
    wave, torch.ones(len(wave)), fbank_mean={mean}, fbank_std={std}
)
names = [labels[i] for i in scores.argmax(-1).tolist()]
```
"""

CLASSIFIER_USE = """\
```python
from speechbrain.inference.classifiers import EncoderClassifier

classifier = EncoderClassifier.from_hparams(source=FOLDER)
_, score, index, names = classifier.classify_file("clip.wav")
```
"""


def export_run(run: Path, out: Path, form: str = "both", force: bool = False) -> list[Path]:
    """Write a finished run's model as folders that load where this package is not installed.

    Arguments
    ---------
    run : Path
        The run's output folder; of audio events, that of one test fold.
    out : Path
        The folder to write: the model itself, or ``hf`` and ``speechbrain`` in it for ``both``.
    form : str
        ``hf``, ``speechbrain`` or ``both``.
    force : bool
        Replace ``out`` where it exists.

    Returns
    -------
    list of Path
        The folders that were written.

    Raises
    ------
    MAMError
        If the run cannot be exported (:func:`~speechbrain_mam.export.run.open_run`), or ``out``
        cannot be written; nothing half written is left then.
    """
    one_of("format", form, FORMATS)
    out = check_output(out, force, run=run)
    opened = open_run(run)
    parts = {"hf": "hf", "speechbrain": "speechbrain"} if form == "both" else {form: "."}
    with new_folder(out, force) as staging:
        for kind, name in parts.items():
            part = staging / name
            part.mkdir(exist_ok=True)
            _write(opened, kind, part, out)
    return [out / name for name in parts.values()]


def _write(run: FinishedRun, kind: str, folder: Path, out: Path) -> None:
    try:
        with quiet():
            usage = (_write_hf if kind == "hf" else _write_speechbrain)(run, folder)
    except (SafetensorError, RuntimeError) as error:  # how the libraries report a full disk
        reason = str(error).splitlines()[0]
        raise MAMError(f"cannot write '{out}': {reason}; is there room on the disk?") from error
    library = "transformers" if kind == "hf" and run.is_speech else "speechbrain"
    (folder / "README.md").write_text(model_card(run, usage, library), encoding="utf-8")


def _write_hf(run: FinishedRun, folder: Path) -> str:
    encoder = run.encoder
    if isinstance(encoder, speech.HubertCTC):
        speech.write_huggingface(encoder, folder)
        return SPEECH_USE.format(rate=encoder.sample_rate)
    assert run.classifier is not None
    events.write_checkpoint(events.checkpoint(encoder, run.classifier, run.classes), folder)
    mean, std = encoder.fbank_mean, encoder.fbank_std
    return BEATS_USE.format(file=events.CHECKPOINT, mean=mean, std=std)


def _write_speechbrain(run: FinishedRun, folder: Path) -> str:
    if isinstance(run.encoder, speech.HubertCTC):
        assert run.decoding is not None
        speech.write_speechbrain(run.encoder, folder, run.decoding)
        models = [file.name for file in folder.glob(f"{LANGUAGE_MODEL}.*")]
        given = f'{{"kenlm_model_path": f"{{FOLDER}}/{models[0]}"}}' if models else ""
        return ASR_USE.format(more=f", overrides={given}" if given else "")
    assert run.classifier is not None
    events.write_speechbrain(run.encoder, run.classifier, run.classes, folder)
    return CLASSIFIER_USE
