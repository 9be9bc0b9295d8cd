"""The λ sweep: many merges of one model, evaluated on validation data without training anything.

The model is loaded once, each point changes Q, K and V in place and is taken back bit for bit, and
what lies below the first merged layer is computed once
(:mod:`speechbrain_mam.search.prefix_cache`). The figures are those of each point evaluated from
scratch, to the bit.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from speechbrain_mam.atomic import write_text_beside
from speechbrain_mam.donors.controls import DRAWN
from speechbrain_mam.donors.donor import Donor
from speechbrain_mam.errors import MAMError
from speechbrain_mam.mam import MAM
from speechbrain_mam.options import parse_projections
from speechbrain_mam.search.grid import Point, Scored
from speechbrain_mam.search.identity import differences, settings_sha256, weights_sha256
from speechbrain_mam.search.prefix_cache import PrefixCache
from speechbrain_mam.text_files import read_json

Around = Callable[[int], AbstractContextManager]
"""What is put around the forward pass of batch *i*."""
Score = Callable[[Around], Mapping[str, tuple[int, int]]]
"""Evaluates the model as it is: errors and reference units by utterance (or clip)."""


class Sweep:
    """Evaluates points and keeps what is done in a folder, so that it can be interrupted.

    Under ``torchrun`` each rank takes its share of the points; the folder is shared.

    Arguments
    ---------
    mam : MAM
        A merge with a fixed λ; its projections, layer map, bias policy hold for every point.
    score : callable
        Evaluates the model as it is; see :data:`Score`.
    folder : Path
        Where one small file per point goes.
    data_id : str
        Changes when the evaluated data change: the manifest's text.
    circumstances : mapping, optional
        What else the figures hang on, by what it is; see
        :func:`~speechbrain_mam.search.identity.circumstances`.
    cache_mb, cache_folder
        See :class:`~speechbrain_mam.search.prefix_cache.PrefixCache`; ``cache_mb`` 0 without a
        folder computes everything anew at each point.
    progress : bool
        Whether to show a progress bar.

    Raises
    ------
    MAMError
        If the folder holds the sweep of another model, corpus or setting.
    """

    def __init__(
        self,
        mam: MAM,
        score: Score,
        folder: Path,
        data_id: str = "",
        circumstances: Mapping[str, str] | None = None,
        cache_mb: float = 2000,
        cache_folder: Path | None = None,
        progress: bool = True,
    ):
        self.mam, self.score, self.folder = mam, score, folder
        self.cache_mb, self.cache_folder, self.progress = cache_mb, cache_folder, progress
        self.title = "λ sweep"
        self.rank, self.ranks = _place()
        self.ids: list[str] = []
        self.units: list[int] = []
        self._donors: dict[str, Donor] = {}
        self._hashes: dict[str, str] = {}
        self._own = {"control": mam.control, "donor_scale": mam.options["donor_scale"]}
        mam.take_back()
        self._identify(data_id, circumstances or {})

    def run(self, points: Iterable[Point]) -> list[Scored]:
        """Evaluate what is not done yet, and give all points with their errors."""
        unique = list({point.key: point for point in points}.values())
        mine = [p for p in unique[self.rank :: self.ranks] if not self._file(p).is_file()]
        hidden = not self.progress or self.rank != 0 or not mine
        options = {"desc": self.title, "disable": hidden, "dynamic_ncols": True, "leave": False}
        with tqdm(total=len(mine), **options) as bar:
            for first, group in _by_first_layer(mine).items():
                with self._cache(first, len(group)) as around:
                    for point in group:
                        self._evaluate(point, around)
                        bar.update()
        if self.ranks > 1:
            torch.distributed.barrier()
        return [self._read(point) for point in unique]

    def apply(self, point: Point) -> None:
        """Merge a point into the model, for good."""
        self.set_to(point)
        self.mam.apply()

    def set_to(self, point: Point) -> None:
        """Make a point what the merge does, without merging. ``none`` is the merge's own control.

        Whatever point was the last one, and whether it was evaluated or read, leaves no trace.
        """
        kinds = {"none": {}, "match_norm": {"donor_scale": "match_norm"}}
        self.mam.change(
            lam=point.lam,
            layers=list(point.layers) or "all",
            donor=self.donor(point.donor),
            **self._own | kinds.get(point.control, {"control": point.control}),
        )

    def _evaluate(self, point: Point, around: Around) -> None:
        if point.lam != 1:
            self.apply(point)
        try:
            found = self.score(around)
        finally:
            self.mam.take_back()
        content = {
            "point": asdict(point),
            "ids": list(found),
            "errors": [errors for errors, _ in found.values()],
            "units": [units for _, units in found.values()],
        }
        write_text_beside(self._file(point), json.dumps(content))

    def _cache(self, first: int, points: int) -> AbstractContextManager[Around]:
        """A cache of layer ``first``'s inputs pays from the second point on."""
        if points < 2 or (not self.cache_mb and self.cache_folder is None):
            return nullcontext(lambda _: nullcontext())
        return _Cached(PrefixCache(self.mam.target, first, self.cache_mb, self.cache_folder))

    def donor(self, name: str) -> Donor:
        """A donor, opened once."""
        if name not in self._donors:
            self._donors[name] = Donor(name)
        return self._donors[name]

    def _donor_hash(self, name: str) -> str:
        """Of the donor's attention: a name may stand for other weights tomorrow."""
        if name not in self._hashes:
            donor, chosen = self.donor(name), parse_projections(self.mam.options["projections"])
            index = donor.index
            tensors = donor.fingerprint(sorted(key for key in index.tensors if key[1] in chosen))
            shape = (tensors, index.architecture.name, index.heads, index.num_layers)
            self._hashes[name] = hashlib.sha256(repr(shape).encode()).hexdigest()
        return self._hashes[name]

    def _file(self, point: Point) -> Path:
        """Where a point's figures lie: another merge has another file, whatever it is called."""
        parts = [point.key]
        if point.lam != 1:
            parts.append(self._donor_hash(point.donor))
            control = self._own["control"] if point.control == "none" else point.control
            parts.append(f"{control} {self.mam.control_seed if control in DRAWN else ''}")
            if self.mam.rotate != "none":
                parts.append(f"{self.mam.rotate} {self.mam.control_seed}")
        return self.folder / f"{hashlib.sha256(' '.join(parts).encode()).hexdigest()[:16]}.json"

    def _read(self, point: Point) -> Scored:
        content = read_json(self._file(point))
        self.ids = self.ids or content["ids"]
        self.units = self.units or content["units"]
        if content["ids"] != self.ids:
            raise MAMError(f"'{self._file(point)}' is of another set; remove '{self.folder}'")
        return Scored(point, tuple(content["errors"]))

    def _identify(self, data_id: str, circumstances: Mapping[str, str]) -> None:
        """The folder belongs to one model, one data set, one machine and one kind of merge."""
        shared = ("projections", "layer_map", "bias", "donor_scale", "method", "align", "width")
        target = self.mam.target
        data = hashlib.sha256(data_id.encode()).hexdigest()
        identity = {"model": weights_sha256(target), "model's settings": settings_sha256(target)}
        identity["data"] = data
        identity |= {key: str(self.mam.options[key]) for key in shared}
        identity |= circumstances
        file = self.folder / "identity.json"
        if file.is_file():
            found = read_json(file)
            if changed := differences(found, identity):
                raise MAMError(
                    f"'{self.folder}' holds the sweep of another {', '.join(changed)}; remove it, "
                    "or choose another output_folder"
                )
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.rank == 0:
            write_text_beside(file, json.dumps(identity, indent=2))


class _Cached(AbstractContextManager[Around]):
    """A prefix cache, as what stands around each batch."""

    def __init__(self, cache: PrefixCache):
        self.cache = cache

    def __enter__(self) -> Around:
        return self.cache.__enter__().batch

    def __exit__(self, *error: Any) -> None:
        self.cache.__exit__(*error)


def _by_first_layer(points: Iterable[Point]) -> dict[int, list[Point]]:
    """Points that can share a cache: those whose first merged layer is the same."""
    groups: dict[int, list[Point]] = {}
    for point in points:
        groups.setdefault(min(point.layers, default=0), []).append(point)
    return groups


def _place() -> tuple[int, int]:
    """This process's rank and their number."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def greedy(sweep: Sweep, ranking: Sequence[int], lam: float, donor: str) -> list[Scored]:
    """Add layers in the order of a ranking; keep each one that lowers the error.

    Returns
    -------
    list of Scored
        Every subset that was tried.
    """
    tried: list[Scored] = sweep.run([Point(1.0, (), donor)])
    best = sum(tried[0].errors)
    kept: tuple[int, ...] = ()
    for layer in ranking:
        subset = tuple(sorted((*kept, layer)))
        (scored,) = sweep.run([Point(lam, subset, donor, subset="greedy")])
        tried.append(scored)
        if sum(scored.errors) < best:
            best, kept = sum(scored.errors), subset
    return tried[1:]
