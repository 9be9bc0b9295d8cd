"""What does not depend on λ, computed once: everything below the first merged layer.

When many merges of one model are evaluated on the same batches, the convolutional front end and all
layers below the first merged one give the same values each time. :class:`PrefixCache` keeps the
inputs of that layer, batch by batch, and skips what led to them. The rest runs as always on the
same bits, so its results are bit-identical to those of a whole pass.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from speechbrain_mam.architectures.index import layer_path
from speechbrain_mam.architectures.live import find_attention
from speechbrain_mam.errors import MAMError


class PrefixCache:
    """Keeps the inputs of one layer of a live model and skips what comes before it.

    Use it as a context manager, and :meth:`batch` around each forward pass. A batch's first pass
    fills the cache. The weights below ``first`` must not change meanwhile.

    Arguments
    ---------
    target : nn.Module
        Holds the encoder. It must be in evaluation mode.
    first : int
        The first layer whose weights may change between passes.
    limit_mb : float
        How much memory the kept inputs may take. What does not fit is written to ``folder``, or
        computed again at each pass where there is none.
    folder : Path, optional
        Where inputs go that do not fit; they are removed at the end.

    Raises
    ------
    MAMError
        If the encoder's family tells no front end, or there is no such layer.

    Example
    -------
    >>> from speechbrain_mam.lobes.hubert_ctc import HubertCTC
    >>> model, wav = HubertCTC("speechbrain_mam/hubert-mini").eval(), torch.randn(1, 8000)
    >>> with torch.no_grad(), PrefixCache(model, first=2) as cache:
    ...     with cache.batch(0):
    ...         computed, _ = model(wav)
    ...     with cache.batch(0):
    ...         replayed, _ = model(wav)
    ...     torch.equal(computed, replayed), cache.size_mb > 0
    (True, True)
    """

    def __init__(
        self,
        target: nn.Module,
        first: int,
        limit_mb: float = 2000,
        folder: Path | None = None,
    ):
        index = find_attention(target)
        if not index.architecture.front:
            raise MAMError(
                f"{index.architecture.name}: the table of architectures names no front end to skip"
            )
        if not 0 <= first < index.num_layers:
            raise MAMError(f"no layer {first}: {index.num_layers} layers, from 0 on")
        self.first, self.limit, self.folder = first, int(limit_mb * 2**20), folder
        self._layer = target.get_submodule(layer_path(index, first))
        modules = dict(target.named_modules())
        front = [index.prefix + name for name in index.architecture.front]
        below = [path for path in front if path in modules]
        below += [layer_path(index, layer) for layer in range(first)]
        self._below = [modules[path] for path in below]
        self._kept: dict[Any, list[Tensor] | Path] = {}
        self._latest: dict[tuple[torch.Size, torch.dtype], Tensor] = {}
        self._outputs: dict[Any, dict[nn.Module, Any]] = {}
        self.size = 0
        self.make_room = lambda size: self.size + size <= self.limit
        self._disk: tempfile.TemporaryDirectory | None = None
        self._current: Any = None

    @property
    def size_mb(self) -> float:
        """Memory that the kept inputs take."""
        return self.size / 2**20

    def __enter__(self) -> PrefixCache:
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._disk = tempfile.TemporaryDirectory(prefix="prefix-", dir=self.folder)
        return self

    def __exit__(self, *error: object) -> None:
        self._kept, self._latest, self._outputs, self.size = {}, {}, {}, 0
        if self._disk is not None:
            self._disk.cleanup()

    @contextmanager
    def batch(self, key: Any) -> Iterator[None]:
        """Around one forward pass of the batch that ``key`` stands for."""
        if self._layer.training:
            raise RuntimeError("PrefixCache needs a model in evaluation mode: dropout is random")
        install = self._replay if key in self._kept else self._record
        self._current = key
        undo = install()
        try:
            yield
        finally:
            for take_off in undo:
                take_off()

    def _record(self) -> list[Callable[[], None]]:
        """Note what the skipped modules return, and keep what the layer gets."""
        key, outputs = self._current, {}

        def note(module: nn.Module, args: Any, output: Any) -> None:
            # shape and type without values: enough to make one of zeros
            outputs[module] = pytree.tree_map_only(Tensor, lambda t: t.to("meta"), output)

        def keep(module: nn.Module, args: Any, kwargs: Any) -> None:
            if self._store(key, [t.detach().clone() for t in _inputs(args, kwargs)[0]]):
                self._outputs[key] = outputs

        hooks = [module.register_forward_hook(note) for module in self._below]
        hooks.append(self._layer.register_forward_pre_hook(keep, with_kwargs=True))
        return [hook.remove for hook in hooks]

    def _replay(self) -> list[Callable[[], None]]:
        """Let the skipped modules return zeros of the right shape, and the layer get its inputs."""
        key = self._current
        outputs = self._outputs[key]

        device = next(self._layer.parameters()).device

        def give(module: nn.Module, args: Any, kwargs: Any) -> Any:
            kept = iter([tensor.to(device) for tensor in self._load(key)])
            return _inputs(args, kwargs, lambda _: next(kept))[1]

        def zeros(tensor: Tensor) -> Tensor:
            return torch.zeros_like(tensor, device=device)

        def skip(module: nn.Module) -> Callable[..., Any]:
            return lambda *_, **__: pytree.tree_map_only(Tensor, zeros, outputs[module])

        for module in self._below:
            module.forward = skip(module)  # type: ignore[method-assign]
        hook = self._layer.register_forward_pre_hook(give, with_kwargs=True)
        # What stands in the instance hides the class's forward; taken away, that one is back.
        return [hook.remove, *(lambda m=m: m.__dict__.pop("forward") for m in self._below)]

    def _store(self, key: Any, tensors: list[Tensor]) -> bool:
        # What depends on lengths alone, as a position bias of frames × frames for each clip and
        # head does, is the same in many batches and kept once.
        tensors = [self._known(tensor) for tensor in tensors]
        new = [t for t in tensors if t is not self._latest.get((t.shape, t.dtype))]
        size = sum(tensor.numel() * tensor.element_size() for tensor in new)
        if self.make_room(size):
            self._kept[key] = tensors
            self._latest |= {(t.shape, t.dtype): t for t in new}
            self.size += size
        elif self._disk is not None:
            file = Path(self._disk.name) / f"{len(self._kept)}.safetensors"
            save_file({str(i): t.contiguous() for i, t in enumerate(tensors)}, file)
            self._kept[key] = file
        return key in self._kept

    def _known(self, tensor: Tensor) -> Tensor:
        latest = self._latest.get((tensor.shape, tensor.dtype))
        return tensor if latest is None or not torch.equal(latest, tensor) else latest

    def _load(self, key: Any) -> list[Tensor]:
        kept = self._kept[key]
        if isinstance(kept, Path):
            tensors = load_file(kept)
            return [tensors[str(i)] for i in range(len(tensors))]
        return kept


def _inputs(
    args: Any, kwargs: dict[str, Any], change: Callable[[Tensor], Tensor] = lambda t: t
) -> tuple[list[Tensor], tuple[Any, dict[str, Any]]]:
    """A layer's tensor inputs but for its mask, and the arguments with each of them changed.

    The mask follows from lengths alone, so it is right in every pass, and it may be as large as
    frames × frames.
    """
    found: list[Tensor] = []

    def visit(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return change(tensor)

    masks = {name: value for name, value in kwargs.items() if name.endswith("mask")}
    rest = {name: value for name, value in kwargs.items() if name not in masks}
    args, rest = pytree.tree_map_only(Tensor, visit, (args, rest))
    return found, (args, {**rest, **masks})
