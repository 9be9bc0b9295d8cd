"""The recipe that a target is checked in, and a donor that is a live model."""

from __future__ import annotations

import copy
from typing import Any

import speechbrain as sb
import torch
from speechbrain.utils.checkpoints import ckpt_recency
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from speechbrain_mam.architectures.live import find_attention
from speechbrain_mam.brain.brain import MAMBrain
from speechbrain_mam.donors.donor import Donor, TensorKey
from speechbrain_mam.mam import MAM


class TestedBrain(MAMBrain, sb.Brain):
    """Saves what it tests, as SpeechBrain's Transformer recipes do, and notes what it sees."""

    __test__ = False  # its name is no test's

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.lam_had_gradient = False
        self.seen: dict[str, Tensor] = {}
        self.recovered_own: dict[str, Tensor] = {}
        self.recovered_lams: list[Tensor] = []

    @property
    def merge(self) -> MAM:
        """The merge that is checked."""
        assert self.mam is not None
        return self.mam

    def data(self, batches: int) -> torch.utils.data.DataLoader:
        """So many batches; what is in them is the forward pass's own."""
        batch: Any = [torch.zeros(1)] * batches
        return torch.utils.data.DataLoader(batch, batch_size=None)

    def test(self) -> None:
        """A test of the best checkpoint."""
        self.evaluate(self.data(1), min_key="loss", progressbar=False)

    def own_weights(self) -> dict[str, Tensor]:
        """The target's own parameters, wherever λ is."""
        with self.merge.own_weights():
            found = dict(self.modules["model"].named_parameters())
        leaves = ("lam", "donor_weight", "donor_bias")
        return {
            name: parameter.detach().clone()
            for name, parameter in found.items()
            if name.rpartition(".")[2] not in leaves
        }

    def compute_forward(self, batch: Any, stage: Any) -> Any:
        """The forward pass that the check was given."""
        model = self.modules["model"]
        if stage == sb.Stage.TEST:
            self.seen = {name: p.detach().clone() for name, p in model.named_parameters()}
        return self.hparams.run(model)

    def compute_objectives(self, predictions: Any, batch: Any, stage: Any) -> Tensor:
        """Some loss that everything has a part in."""
        found = pytree.tree_leaves(_plain(predictions))
        tensors = [t for t in found if torch.is_tensor(t) and t.is_floating_point()]
        return torch.stack([tensor.float().square().mean() for tensor in tensors]).sum()

    def on_fit_batch_start(self, batch: Any, should_step: bool) -> None:
        """What was recovered, before the first step changes it."""
        super().on_fit_batch_start(batch, should_step)
        if not self.recovered_own:
            lams = self.merge.live.parameters() if self.merge.learnable else []
            self.recovered_lams = [lam.detach().clone() for lam in lams]
            self.recovered_own = self.own_weights()

    def _mam_after_step(self, *args: Any) -> None:
        grads = [lam.grad for lam in self.merge.live.parameters()]
        self.lam_had_gradient |= all(g is not None and bool(g.any()) for g in grads)
        super()._mam_after_step(*args)

    def on_stage_end(self, stage: Any, stage_loss: float, epoch: int | None = None) -> None:
        """A checkpoint after each epoch, and a better one after each test."""
        if stage != sb.Stage.TRAIN:
            self.saved = getattr(self, "saved", 0) + 1
            loss = -float(self.saved) if stage == sb.Stage.TEST else -0.5
            # SpeechBrain adds to the default list of keys at every call, and sorts by all of it
            keys = [ckpt_recency]
            self.checkpointer.save_and_keep_only(
                meta={"loss": loss}, min_keys=["loss"], importance_keys=keys
            )


def _plain(output: Any) -> Any:
    """An output of transformers as a dictionary."""
    return dict(output) if isinstance(output, dict) else output


class _LiveDonor(Donor):
    """A donor that is read out of a live model."""

    def __init__(self, model: nn.Module):
        self.name, self.index = type(model).__name__, find_attention(model)
        self._parameters = dict(model.named_parameters())

    def tensor(self, key: TensorKey) -> Tensor:
        ref = self.index.tensors[key]
        tensor = self._parameters[ref.name].detach()
        return (tensor if ref.part is None else ref.part.take(tensor)).float()


def of_model(model: nn.Module) -> Donor:
    """What a model may have been trained from: a copy of it with other weights."""
    former = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in former.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return _LiveDonor(former)
