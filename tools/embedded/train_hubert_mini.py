"""Trains HuBERT-mini, the recogniser behind the package's defaults, on synthetic speech.

To run this (``--data`` is what ``make_training_speech.py`` wrote; ``--whisper`` is Whisper tiny.en,
MIT licence, as CTranslate2's ``model.bin``):

> python -m tools.embedded.train_hubert_mini --init whisper --whisper model.bin \\
      --data training_speech --out results/hubert_mini

Direction ``whisper``: (1) for ``front_steps`` the convolutional front end is regressed onto
Whisper's embedded frames, while the CTC head learns to read letters off the Whisper encoder's
output; (2) Whisper's positions are placed (see ``whisper_positions``) and frozen, and the encoder,
which is Whisper's, is trained with CTC, the front end only with ``--train_front``. Direction
``scratch``: CTC alone, all weights random but the first convolution's, in MiniLM's geometry. Run
again, it resumes; ``--start`` goes on from another run's ``model`` with another schedule.
"""

from __future__ import annotations

import argparse
import logging
import time
from pathlib import Path

import speechbrain as sb
import torch
from speechbrain.utils.checkpoints import Checkpointer
from speechbrain.utils.epoch_loop import EpochCounter
from torch import Tensor
from transformers import HubertForCTC

from speechbrain_mam.search.place import fast_precision
from tools.embedded.hubert_mini_data import (
    ShortFirstSampler,
    make_augmenter,
    make_dataset,
)
from tools.embedded.hubert_mini_model import (
    BLANK,
    export,
    make_model,
    normalise,
    to_labels,
    to_text,
)
from tools.embedded.whisper_init import WhisperTeacher, load_encoder_layers
from tools.embedded.whisper_positions import hold_positions, place_positions

logger = logging.getLogger(__name__)

WARMUP_STEPS = 100
PARTS = ("open", "grammar", "brisk", "neural")


def relative_error(predicted: Tensor, target: Tensor, keep: Tensor) -> Tensor:
    """Mean squared error over the target's variance, on frames where ``keep`` ``[B, N]``."""
    predicted, target = predicted[keep].float(), target[keep]
    return (predicted - target).square().mean() / target.var(0).mean()


class HubertMiniBrain(sb.Brain):
    """Front end and head for ``front_steps``, then CTC."""

    ctc_phase = False

    def compute_forward(self, batch, stage):
        """Waveforms → ``(logits, front end's frames), which frames to keep, teacher's frames``."""
        model, teacher = self.modules.model, self.hparams.teacher
        wavs, lengths = batch.sig
        if stage == sb.Stage.TRAIN:
            wavs, lengths = self.hparams.augment(wavs, lengths)
        wavs, mask = normalise(wavs, lengths)
        hubert = model.hubert
        keep = torch.arange(hubert._get_feat_extract_output_lengths(wavs.shape[1]))
        keep = keep < hubert._get_feat_extract_output_lengths(mask.sum(1))[:, None]
        if stage == sb.Stage.TRAIN and self.in_front_phase():
            frames = hubert.feature_extractor(wavs).transpose(1, 2)
            target = teacher.embed(wavs)
            logits = model.lm_head(teacher.encode(target, keep))
            return (logits, hubert.feature_projection(frames)), keep, target
        return (model(wavs, attention_mask=mask).logits, None), keep, None

    def compute_objectives(self, predictions, batch, stage):
        """CTC and distillation, or the front end's regression."""
        (logits, frames), keep, target = predictions
        texts = [to_labels(words) for words in batch.words]
        loss = torch.nn.functional.ctc_loss(
            logits.float().log_softmax(-1).transpose(0, 1),
            torch.tensor([label for text in texts for label in text]),
            keep.sum(1),
            torch.tensor([len(text) for text in texts]),
            blank=BLANK,
            zero_infinity=True,
        )
        if stage != sb.Stage.TRAIN:
            best = logits.argmax(-1)
            heard = [to_text(row[:n].tolist()) for row, n in zip(best, keep.sum(1), strict=True)]
            for utterance, text, words in zip(batch.id, heard, batch.words, strict=True):
                for units, split in ((self.words, str.split), (self.letters, list)):
                    units[utterance.startswith("dev_heard")].append(
                        [utterance], [split(text)], [split(words)]
                    )
        elif target is not None:
            return loss + relative_error(frames, target, keep)
        return loss

    def in_front_phase(self) -> bool:
        """Whether the front end is still being regressed."""
        return self.optimizer_step < self.hparams.front_steps

    def start_ctc_phase(self, batch):
        """Positions, unless a checkpoint brought them, and what stays as it is from here on."""
        model, teacher = self.modules.model, self.hparams.teacher
        self.ctc_phase = True
        if teacher is None:
            return
        if self.optimizer_step == self.hparams.front_steps > 0:
            frames = [
                teacher.embed(normalise(wav[None], torch.ones(1))[0])[0] for wav in batch.sig.data
            ]
            place_positions(model, teacher.positions, torch.cat(frames))
        hold_positions(model)
        if not self.hparams.train_front:
            model.hubert.feature_extractor._freeze_parameters()

    def on_fit_batch_start(self, batch, should_step):
        """Sets the learning rate: warm-up, then linear to 0, in each phase."""
        hparams = self.hparams
        if self.in_front_phase():
            peak, step, steps = 1.5e-3, self.optimizer_step, hparams.front_steps
        else:
            peak, step = hparams.lr, self.optimizer_step - hparams.front_steps
            steps = hparams.steps - hparams.front_steps
            if not self.ctc_phase:
                self.start_ctc_phase(batch)
        rate = peak * min(1.0, (step + 1) / WARMUP_STEPS, max(0.0, 1.02 - step / steps))
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    @torch.no_grad()
    def on_fit_batch_end(self, batch, outputs, loss, should_step):
        """Logs every 50 steps."""
        if self.optimizer_step % 50 == 0:
            (_, frames), keep, target = outputs
            error = "" if target is None else f" front {relative_error(frames, target, keep):.3f}"
            cpu_s = time.process_time()
            logger.info(f"step {self.optimizer_step} loss {loss:.3f}{error} cpu {cpu_s:.0f} s")

    def on_stage_start(self, stage, epoch=None):
        """Fresh error counts, of unheard and of heard voices."""
        stats = sb.utils.metric_stats.ErrorRateStats
        self.words, self.letters = (stats(), stats()), (stats(), stats())

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """After an epoch: dev figures into ``train_log.txt``, the model's folder, a checkpoint."""
        if stage == sb.Stage.TRAIN:
            self.train_loss = stage_loss
            return
        line = f"epoch {epoch} step {self.optimizer_step} train loss {self.train_loss:.3f}"
        for kind, words, letters in zip(
            ("unheard", "heard"), self.words, self.letters, strict=True
        ):
            cer, wer = letters.summarize("error_rate"), words.summarize("error_rate")
            line += f" | {kind} voices CER {cer:.2f} WER {wer:.2f}"
        with open(self.hparams.out / "train_log.txt", "a", encoding="utf-8") as file:
            file.write(f"{line} | cpu {time.process_time():.0f} s\n")
        logger.info(line)
        export(self.modules.model, self.hparams.out / "model")
        self.checkpointer.save_and_keep_only(meta={"epoch": epoch}, num_to_keep=1)


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description="Train HuBERT-mini.")
    parser.add_argument("--init", choices=("whisper", "scratch"), default="whisper")
    parser.add_argument("--whisper", type=Path, help="model.bin of Whisper tiny.en (CTranslate2)")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2700, help="in all, of about 24 s of speech")
    parser.add_argument("--front_steps", type=int, default=700)
    parser.add_argument("--lr", type=float, default=3e-4, help="peak, of the CTC phase")
    parser.add_argument("--start", type=Path, help="a model folder to go on from")
    parser.add_argument("--train_front", action="store_true", help="in the CTC phase too")
    parser.add_argument("--augment", type=float, default=0.7, help="share of augmented batches")
    parser.add_argument("--mask", type=float, default=0.05, help="SpecAugment's masks over time")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    if args.init == "whisper" and args.whisper is None:
        parser.error("--init whisper needs --whisper model.bin")
    args.out.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.manual_seed(args.seed)

    model = make_model(args.init)
    # On short utterances on CPU, forward and backward take 25 % less time than the fused kernel.
    model.set_attn_implementation("eager")
    model.config.mask_time_prob = args.mask
    teacher = WhisperTeacher(args.whisper) if args.init == "whisper" else None
    if args.start is not None:
        model.load_state_dict(HubertForCTC.from_pretrained(args.start).state_dict())
    elif teacher is not None:
        load_encoder_layers(model.hubert.encoder, teacher.weights)
    train = make_dataset([args.data / f"{part}.csv" for part in PARTS])
    dev = make_dataset([args.data / "dev_heard.csv", args.data / "dev_unheard.csv"])
    counter = EpochCounter(limit=10_000)
    hparams = {
        **{"steps": args.steps, "lr": args.lr, "out": args.out, "teacher": teacher},
        "front_steps": 0 if teacher is None or args.start is not None else args.front_steps,
        "train_front": args.train_front,
        "augment": make_augmenter(args.data, args.augment),
    }
    checkpointer = Checkpointer(
        args.out / "save", recoverables={"model": model, "counter": counter}
    )
    brain = HubertMiniBrain(
        modules={"model": model},
        opt_class=lambda p: torch.optim.AdamW(p, lr=args.lr, weight_decay=0.0, fused=True),
        hparams=hparams,
        run_opts={
            "device": "cpu",
            "precision": fast_precision(),
            "max_grad_norm": 1.0,
            "skip_nonfinite_grads": True,
            "noprogressbar": True,
            "ckpt_interval_minutes": 10,
            "optimizer_step_limit": args.steps,
        },
        checkpointer=checkpointer,
    )
    brain.fit(
        counter,
        train,
        dev,
        train_loader_kwargs={"batch_sampler": ShortFirstSampler(train, args.start is None)},
        valid_loader_kwargs={"batch_size": 8},
    )


if __name__ == "__main__":
    main()
