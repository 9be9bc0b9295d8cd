"""A finished run as folders that load without this package.

    from speechbrain_mam.export import export_run
    export_run(Path("results/LJSpeech/mam_learnable/1986"), Path("exported"))

A recogniser becomes a Hugging Face folder (``AutoModelForCTC.from_pretrained``) and a SpeechBrain
folder (``EncoderASR.from_hparams``). A BEATs classifier becomes a checkpoint ``{cfg, model,
label_dict}``, as BEATs' authors publish their fine-tuned ones, and a SpeechBrain folder
(``EncoderClassifier.from_hparams``). The weights are those that the run tested, λ folded in. It may
import tasks, results and what they may import.
"""

from speechbrain_mam.export.run import FinishedRun, open_run
from speechbrain_mam.export.write import FORMATS, export_run

__all__ = ["FORMATS", "FinishedRun", "export_run", "open_run"]
