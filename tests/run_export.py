"""Run exported models where this package cannot be imported; print what they wrote, as JSON.

    python run_export.py JOBS

JOBS is JSON: a list of (kind, folder, ID → audio file), where kind is ``ctc``, ``asr``, ``beats``,
``classifier`` or ``card``. Nothing is printed where the package could be imported.
"""

import glob
import json
import re
import shutil
import sys


class Blocker:
    """Nothing below it is found: neither installed nor beside this file."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "speechbrain_mam":
            raise ModuleNotFoundError(f"{name} must not be needed here")


if __name__ == "__main__":  # before anything else is imported; not where doctests are looked for
    sys.meta_path.insert(0, Blocker())

import soundfile  # noqa: E402
import torch  # noqa: E402

RATE = 16000


def read(file):
    import torchaudio

    wave, rate = soundfile.read(file, dtype="float32", always_2d=True)
    wave = torch.from_numpy(wave).mean(1)
    return wave if rate == RATE else torchaudio.transforms.Resample(rate, RATE)(wave)


def ctc(folder):
    from transformers import AutoModelForCTC, AutoProcessor

    model = AutoModelForCTC.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder)

    def write(file):
        inputs = processor(read(file).numpy(), sampling_rate=RATE, return_tensors="pt")
        return processor.batch_decode(model(**inputs).logits.argmax(-1))[0]

    return write


def asr(folder):
    from speechbrain.inference.ASR import EncoderASR

    models = glob.glob(f"{folder}/lm.*")
    overrides = {"kenlm_model_path": models[0]} if models else {}
    return EncoderASR.from_hparams(source=folder, overrides=overrides).transcribe_file


def beats(folder):
    from speechbrain.lobes.models.beats import BEATs

    model = BEATs(f"{folder}/beats.pt", freeze=False).eval()
    labels = torch.load(f"{folder}/beats.pt")["label_dict"]

    with open(f"{folder}/README.md", encoding="utf-8") as stream:
        banks = dict(re.findall(r"(fbank_\w+)=([\d.]+)", stream.read()))
    banks = {name: float(value) for name, value in banks.items()}
    assert set(banks) == {"fbank_mean", "fbank_std"}

    def write(file):
        _, scores, _ = model.extract_features(read(file)[None], torch.ones(1), **banks)
        return labels[int(scores.argmax())]

    return write


def classifier(folder):
    from speechbrain.inference.classifiers import EncoderClassifier

    model = EncoderClassifier.from_hparams(source=folder)
    return lambda file: model.classify_file(file)[3][0]


def card(folder):
    """The lines that the model card shows, as they stand there."""
    with open(f"{folder}/README.md", encoding="utf-8") as stream:
        code = stream.read().split("```python\n")[1].split("```")[0]

    def write(file):
        for name in ("recording.wav", "clip.wav"):
            shutil.copyfile(file, name)
        wave = read(file)
        wave = wave[None] if "BEATs" in code else wave.numpy()
        names = {"FOLDER": folder, "wave": wave}
        exec(code, names)
        found = names.get("text") or names.get("texts") or names["names"]
        return found if isinstance(found, str) else found[0]

    return write


def main(jobs):
    with open(jobs, encoding="utf-8") as stream:
        tasks = json.load(stream)
    found = []
    with torch.no_grad():
        for kind, folder, files in tasks:
            write = globals()[kind](folder)
            found.append({name: write(file) for name, file in files.items()})
    try:
        import speechbrain_mam  # noqa: F401
    except ModuleNotFoundError:
        print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
