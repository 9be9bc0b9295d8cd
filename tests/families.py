"""The tiny models of the package for tests, and a check of what each projection computes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from speechbrain_mam.architectures.index import AttentionIndex, TensorRef
from speechbrain_mam.testing import families
from speechbrain_mam.testing.families import (
    HEADS as HEADS,
)
from speechbrain_mam.testing.families import (
    IMAGE as IMAGE,
)
from speechbrain_mam.testing.families import (
    LAYERS as LAYERS,
)
from speechbrain_mam.testing.families import (
    TEXT as TEXT,
)
from speechbrain_mam.testing.families import (
    WHISPER as WHISPER,
)
from speechbrain_mam.testing.families import (
    WIDTH as WIDTH,
)
from speechbrain_mam.testing.families import (
    randomise as randomise,
)


class Family(families.Family):
    """A family whose tests are skipped where transformers has no such model."""

    def build(self, seed: int = 11) -> nn.Module:
        try:
            return super().build(seed)
        except LookupError as error:
            pytest.skip(str(error))


def _of_tests(several: Sequence[families.Family]) -> tuple[Family, ...]:
    names = [field.name for field in dataclasses.fields(families.Family)]
    return tuple(Family(**{name: getattr(one, name) for name in names}) for one in several)


FAMILIES, TWO_TOWERS = _of_tests(families.FAMILIES), _of_tests(families.TWO_TOWERS)


def part(model: nn.Module, ref: TensorRef) -> Tensor:
    """A live projection: a parameter, or a part of one, heads on top of each other."""
    parameter = model.get_parameter(ref.name).detach()
    return parameter if ref.part is None else ref.part.take(parameter)


@contextmanager
def changed(model: nn.Module, refs: Sequence[TensorRef], change: Callable[[Tensor], Tensor]):
    """Live projections that are other ones for a while."""
    whole = [model.get_parameter(ref.name).detach() for ref in refs]
    before = [tensor.clone() for tensor in whole]
    for ref, tensor in zip(refs, whole, strict=True):
        if ref.part is None:
            tensor.copy_(change(tensor.clone()))
        else:
            ref.part.put(tensor, change(ref.part.take(tensor).clone()))
    try:
        yield
    finally:
        for tensor, old in zip(whole, before, strict=True):
            tensor.copy_(old)


def mixed_values(model: nn.Module, index: AttentionIndex, run: Callable[[], Any]) -> list[Tensor]:
    """What attention gives to its output projection, layer by layer, in one forward pass.

    Where a function reads the output projection's weight instead of calling it, what it returns
    stands in for that, less the bias: the same up to a linear map.
    """
    kept: list[Tensor] = []

    def before(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        kept.append(args[0].clone())

    def after(module: nn.Module, args: Any, output: tuple[Tensor, ...]) -> None:
        kept.append(output[0] - module.out_proj.bias)

    hooks = []
    outputs = [ref for (_, p, kind), ref in index.tensors.items() if (p, kind) == _OUTPUT]
    for path in {ref.name.removesuffix(".weight") for ref in outputs}:
        parent = model.get_submodule(path.rpartition(".")[0])
        if isinstance(parent, nn.MultiheadAttention) or index.architecture.reads_weight:
            hooks.append(parent.register_forward_hook(after))
        else:
            hooks.append(model.get_submodule(path).register_forward_pre_hook(before))
    with torch.no_grad():
        run()
    for hook in hooks:
        hook.remove()
    return kept


_OUTPUT = ("output", "weight")


def check_computation(
    model: nn.Module, index: AttentionIndex, run: Callable[[], Any], shift: bool = True
) -> None:
    """That each projection is what its name says, in the layer that it is said to be in.

    What is mixed is linear in the values; softmax does not see what is added to all keys, as long
    as keys are not rotated by their positions (``shift``); no layer sees anything of a later one.
    """
    plain = mixed_values(model, index, run)
    assert len(plain) == index.num_layers
    seen = set()

    def after(layer: int, projection: str, kinds: str, change: Callable) -> list[Tensor]:
        refs = [index.tensors.get((layer, projection, kind)) for kind in kinds.split()]
        with changed(model, [ref for ref in refs if ref is not None], change):
            mixed = mixed_values(model, index, run)
        for other, (ours, theirs) in enumerate(zip(plain, mixed, strict=True)):
            assert torch.equal(ours, theirs) or other >= layer, (layer, projection, kinds)
        return mixed

    def distance(mixed: list[Tensor], layer: int) -> float:
        return float((mixed[layer] - plain[layer]).abs().max() / plain[layer].abs().max())

    for layer in range(index.num_layers):
        ref = index.tensors[layer, "query", "weight"]
        if ref in seen:  # of layers that share their weights, the first one shows all
            continue
        seen.add(ref)
        for projection in ("query", "key"):
            turned = after(layer, projection, "weight", lambda t: 8 * t.roll(1, 0))
            assert distance(turned, layer) > 1e-4, (layer, projection)
        doubled = after(layer, "value", "weight bias", lambda t: 2 * t)
        torch.testing.assert_close(doubled[layer], 2 * plain[layer])
        if (layer, "key", "bias") in index.tensors and shift:
            keys = distance(after(layer, "key", "bias", lambda t: t + 4), layer)
            queries = distance(after(layer, "query", "bias", lambda t: t + 4), layer)
            assert keys < 1e-4 and keys < 0.02 * queries, (layer, keys, queries)
