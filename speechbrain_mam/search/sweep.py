"""The λ sweep: many merges of one model, evaluated on validation data without training anything.

The model is loaded once, each point changes Q, K and V in place and is taken back bit for bit, and
what lies below the first merged layer is computed once
(:mod:`speechbrain_mam.search.prefix_caches`). The figures are those of each point evaluated from
scratch, to the bit. With a race (:mod:`speechbrain_mam.search.race`), points that are clearly worse
than others see a part of the data only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
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
from speechbrain_mam.search.prefix_caches import PrefixCaches
from speechbrain_mam.search.race import Around as Around
from speechbrain_mam.search.race import Part, Race, clearly_worse
from speechbrain_mam.search.race import Score as Score
from speechbrain_mam.text_files import read_json


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
        See :class:`~speechbrain_mam.search.prefix_caches.PrefixCaches`; ``cache_mb`` 0 without a
        folder computes everything anew at each point.
    progress : bool
        Whether to show a progress bar.
    race : Race, optional
        The set in parts, after each of which points may be dropped.

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
        race: Race | None = None,
    ):
        self.mam, self.folder, self.progress = mam, folder, progress
        self.order = race.order if race is not None else ()
        self.parts = race.parts if race is not None else (Part(score, ()),)
        self.caches = PrefixCaches(mam.target, cache_mb, cache_folder)
        self.title = "λ sweep"
        self.rank, self.ranks = _place()
        self.ids: list[str] = []
        self.units: list[int] = []
        self._donors: dict[str, Donor] = {}
        self._hashes: dict[str, str] = {}
        self._own = {"control": mam.control, "donor_scale": mam.options["donor_scale"]}
        self._seed = mam.control_seed
        mam.take_back()
        self._identify(data_id, circumstances or {})

    def run(self, points: Iterable[Point], against: Iterable[Scored] = ()) -> list[Scored]:
        """Evaluate what is not done yet, and give all points with their errors.

        Arguments
        ---------
        points : iterable of Point
            With a race, those that fall behind the best one are dropped.
        against : iterable of Scored
            Whole results that a point may fall behind, too.
        """
        unique = list({point.key: point for point in points}.values())
        leaders = [scored for scored in against if scored.whole]
        found: dict[str, Scored] = {}
        standing = unique
        for last in range(len(self.parts)):
            self._evaluate(standing, last)
            found |= {point.key: self._read(point, last) for point in standing}
            if last < len(self.parts) - 1:
                standing = self._not_dropped(standing, found, leaders, last)
        return [found[point.key] for point in unique]

    def _not_dropped(
        self,
        points: Sequence[Point],
        found: Mapping[str, Scored],
        leaders: Sequence[Scored],
        last: int,
    ) -> list[Point]:
        """Those that are in the race after a part; each rank comes to the same."""
        places = {name: i for i, name in enumerate(self.order)}
        seen = [places[name] for part in self.parts[: last + 1] for name in part.ids]
        worse = clearly_worse(
            [found[point.key].errors for point in points],
            [[scored.errors[i] for i in seen] for scored in leaders],
        )
        return [point for i, point in enumerate(points) if i not in worse]

    def _evaluate(self, points: Sequence[Point], last: int) -> None:
        """This rank's share of the points, on the parts up to the last that they have not seen."""
        # Dealt out first: other ranks write while this one looks what is done.
        mine = [p for p in points[self.rank :: self.ranks] if self._seen(p)[1] <= last]
        hidden = not self.progress or self.rank != 0 or not mine
        part = f", part {last + 1} of {len(self.parts)}" if len(self.parts) > 1 else ""
        options = {"desc": self.title + part, "dynamic_ncols": True, "leave": False}
        with tqdm(total=len(mine), disable=hidden, **options) as bar:
            for first, group in _by_first_layer(mine).items():
                around = self.caches.around(first)
                for point in group:
                    self._evaluate_one(point, last, around)
                    bar.update()
        if self.ranks > 1:
            torch.distributed.barrier()

    def apply(self, point: Point) -> None:
        """Merge a point into the model, for good."""
        self.set_to(point)
        self.mam.apply()

    def set_to(self, point: Point) -> None:
        """Make a point what the merge does, without merging. ``none`` is the merge's own control.

        A second draw of a control has the next seed, and so on.

        Whatever point was the last one, and whether it was evaluated or read, leaves no trace.
        """
        kinds = {"none": {}, "match_norm": {"donor_scale": "match_norm"}}
        self.mam.change(
            lam=point.lam,
            layers=list(point.layers) or "all",
            donor=self.donor(point.donor),
            control_seed=self._seed_of(point),
            **self._own | kinds.get(point.control, {"control": point.control}),
        )

    def _evaluate_one(self, point: Point, last: int, around: Around) -> None:
        """A point on the parts that it has not seen, added to its file."""
        before, done = self._seen(point)
        errors: dict[str, int] = dict(
            zip(before.get("ids", ()), before.get("errors", ()), strict=True)
        )
        units: dict[str, int] = dict(
            zip(before.get("ids", ()), before.get("units", ()), strict=True)
        )
        if point.lam != 1:
            self.apply(point)
        try:
            for part in self.parts[done : last + 1]:
                scores = part.score(around)
                errors |= {name: score for name, (score, _) in scores.items()}
                units |= {name: size for name, (_, size) in scores.items()}
        finally:
            self.mam.take_back()
        whole = last == len(self.parts) - 1
        ids = self.order if whole and self.order else tuple(errors)
        content = {
            "point": asdict(point),
            "whole": whole,
            "ids": list(ids),
            "errors": [errors[name] for name in ids],
            "units": [units[name] for name in ids],
        }
        write_text_beside(self._file(point), json.dumps(content))

    def _seen(self, point: Point) -> tuple[dict[str, Any], int]:
        """What a point's file holds, and of how many parts; of other parts it is nothing."""
        file = self._file(point)
        content = read_json(file) if file.is_file() else {}
        if content.get("whole"):
            return content, len(self.parts)
        names: tuple[str, ...] = ()
        for number, part in enumerate(self.parts, 1):
            names += part.ids
            if part.ids and tuple(content.get("ids", ())) == names:
                return content, number
        return {}, 0

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

    def _seed_of(self, point: Point) -> int:
        return self._seed + point.draw - 1

    def _file(self, point: Point) -> Path:
        """Where a point's figures lie: another merge has another file, whatever it is called."""
        parts = [point.key]
        if point.lam != 1:
            parts.append(self._donor_hash(point.donor))
            control = self._own["control"] if point.control == "none" else point.control
            parts.append(f"{control} {self._seed_of(point) if control in DRAWN else ''}")
            if self.mam.rotate != "none":
                parts.append(f"{self.mam.rotate} {self._seed_of(point)}")
        return self.folder / f"{hashlib.sha256(' '.join(parts).encode()).hexdigest()[:16]}.json"

    def _read(self, point: Point, last: int) -> Scored:
        """A point's errors on the parts up to the last, whatever else it has seen."""
        content = self._seen(point)[0]
        whole = last == len(self.parts) - 1
        ids: Sequence[str] = content["ids"]
        if whole:
            self.ids = self.ids or content["ids"]
            self.units = self.units or content["units"]
            if ids != self.ids:
                raise MAMError(f"'{self._file(point)}' is of another set; remove '{self.folder}'")
            return Scored(point, tuple(content["errors"]))
        errors = dict(zip(ids, content["errors"], strict=True))
        units = dict(zip(ids, content["units"], strict=True))
        seen = [name for part in self.parts[: last + 1] for name in part.ids]
        return Scored(
            point, tuple(errors[n] for n in seen), last + 1, tuple(units[n] for n in seen)
        )

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
