"""The arithmetic and the bytes of a merge on files, on hand-made safetensors."""

from __future__ import annotations

import hashlib
import json
import runpy
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from speechbrain_mam.architectures.live import find_attention
from speechbrain_mam.donors.donor import Donor
from speechbrain_mam.errors import MAMError
from speechbrain_mam.merging.apply import Merge
from speechbrain_mam.merging.arithmetic import linear
from speechbrain_mam.merging.on_disk import merge_folders
from speechbrain_mam.merging.plan import MergePlan
from speechbrain_mam.merging.planner import make_plan
from speechbrain_mam.merging.prepare import donor_tensors
from speechbrain_mam.merging.tensor_file import TensorFile, _round_ties, mix
from speechbrain_mam.model_files.folder import ModelFolder

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "merge_memory.py"


def write_folder(
    path: Path,
    model_type: str,
    dtype: torch.dtype = torch.float32,
    layers: int = 2,
    width: int = 8,
    seed: int = 0,
) -> ModelFolder:
    """A model folder with nothing but self-attention and one other tensor."""
    name = {
        "hubert": "hubert.encoder.layers.{}.attention.{}_proj.{}",
        "bert": "encoder.layer.{}.attention.self.{}.{}",
    }[model_type]
    projections = {"hubert": "qkv", "bert": ("query", "key", "value")}[model_type]
    generator = torch.Generator().manual_seed(len(model_type) + seed)
    tensors = {"other": torch.arange(7)}
    for layer in range(layers):
        for projection in projections:
            for kind, shape in (("weight", (width, width)), ("bias", (width,))):
                values = torch.randn(shape, generator=generator, dtype=torch.float64)
                tensors[name.format(layer, projection, kind)] = values.to(dtype)
    path.mkdir()
    (path / "config.json").write_text(
        json.dumps({"model_type": model_type, "num_attention_heads": 2}), encoding="utf-8"
    )
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    return ModelFolder(path)


def merged(tmp_path: Path, plan: MergePlan, target: ModelFolder, donor: ModelFolder) -> dict:
    out = tmp_path / "out"
    out.mkdir()
    merge_folders(plan, target, donor, out)
    return load_file(out / "model.safetensors")


@pytest.mark.parametrize("lam", [0.0, 0.1, 0.3, 0.5, 0.9, 0.95, 1.0])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_mix_is_the_live_merge(lam: float, dtype: type) -> None:
    random = np.random.default_rng(0)
    target, donor = (random.standard_normal(4096).astype(dtype) for _ in range(2))
    expected = linear(torch.from_numpy(target), torch.from_numpy(donor), lam).numpy()
    found = mix(target, donor, lam)
    assert found.dtype == dtype
    if lam in (0, 1):
        assert np.array_equal(found, expected)
    # The same bits where torch's kernel has FMA, as on x86 with AVX2; elsewhere one ulp off
    spacing = np.spacing(np.maximum(np.abs(target), np.abs(donor)))
    assert (np.abs(found - expected) <= spacing).all()
    exact = np.longdouble(lam) * target + (1 - np.longdouble(lam)) * donor
    assert (np.abs(found - exact) <= 2 * spacing).all()


def test_mix_keeps_the_sign_of_zero_at_both_ends() -> None:
    zero, minus = np.float32([0.0]), np.float32([-0.0])
    assert np.signbit(mix(minus, zero, 1)).all() and np.signbit(mix(zero, minus, 0)).all()


@pytest.mark.slow
@pytest.mark.parametrize("donor_dtype", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lam", [0.0, 0.7, 1.0])
def test_every_precision(
    tmp_path: Path, dtype: torch.dtype, donor_dtype: torch.dtype, lam: float
) -> None:
    target = write_folder(tmp_path / "target", "hubert", dtype)
    donor = write_folder(tmp_path / "donor", "bert", donor_dtype)
    plan = make_plan(target.attention(), donor.attention(), lam=lam)
    found = merged(tmp_path, plan, target, donor)
    for entry in plan.entries:
        ours, theirs = target.read(entry.target), donor.read(entry.donor)
        wide = torch.promote_types(dtype, torch.float32)
        expected = linear(ours.to(wide), theirs.to(wide), lam)
        assert found[entry.target].dtype == dtype
        if lam in (0, 1):
            assert torch.equal(found[entry.target], expected.to(dtype))
        else:
            size = torch.maximum(ours.abs().to(wide), theirs.abs().to(wide))
            error = (found[entry.target].to(wide) - expected).abs()
            assert (error <= size * torch.finfo(dtype).eps).all()


def test_bfloat16_is_rounded_as_torch_rounds(tmp_path: Path) -> None:
    values = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    values[:4] = torch.tensor([0.0, -0.0, 1 + 2**-8, 1 + 3 * 2**-8])  # the last two are ties
    file = tmp_path / "one.safetensors"
    save_file({"x": torch.zeros(100_000, dtype=torch.bfloat16)}, file)
    with TensorFile(file, "r+b") as stream:
        stream.write("x", values.numpy())
        widened = stream.read("x")
    found = load_file(file)["x"]
    assert torch.equal(found.view(torch.int16), values.bfloat16().view(torch.int16))
    assert np.array_equal(widened, found.float().numpy())


def test_match_norm_is_the_live_one(tmp_path: Path) -> None:
    target = write_folder(tmp_path / "target", "hubert")
    donor = write_folder(tmp_path / "donor", "bert", layers=3)
    plan = make_plan(target.attention(), donor.attention(), lam=0.25, donor_scale="match_norm")
    found = merged(tmp_path, plan, target, donor)
    for entry, theirs in donor_tensors(plan, Donor(donor.path), target.read):
        expected = linear(target.read(entry.target), theirs, entry.lam)
        torch.testing.assert_close(found[entry.target], expected, rtol=1e-6, atol=1e-7)


def test_match_norm_refuses_a_donor_of_zeros(tmp_path: Path) -> None:
    target = write_folder(tmp_path / "target", "hubert")
    donor = write_folder(tmp_path / "donor", "bert")
    file = donor.path / "model.safetensors"
    zeros = {name: torch.zeros_like(tensor) for name, tensor in load_file(file).items()}
    save_file(zeros, file)
    plan = make_plan(target.attention(), donor.attention(), donor_scale="match_norm")
    with pytest.raises(MAMError, match=r"'encoder.layer.0.attention.self.query.weight' is all zer"):
        merged(tmp_path, plan, target, donor)


SHARES = [1.0, 0.999, 0.95, 0.5, 0.0]
"""One for each layer. In bfloat16, 0.999 is 1."""

MERGES = {
    "linear": {},
    "match_norm": {"donor_scale": "match_norm"},
    "norm_matched": {"method": "norm_matched"},
    "slerp": {"method": "slerp"},
    "multi_path": {"method": "multi_path"},
    "pretrained": {"method": "pretrained"},
    "heads": {"align": "heads"},
    "rotation": {"align": "rotation"},
    "heads, match_norm": {"align": "heads", "donor_scale": "match_norm"},
    "crop": {"width": "crop"},
}


def live(folder: ModelFolder) -> nn.Module:
    """A module with the folder's tensors as parameters, in the precision of the file."""
    root = nn.Module()
    root.config = SimpleNamespace(**folder.config)
    for name in folder.files:
        *path, last = name.split(".")
        module = root
        for step in path:
            if step not in module._modules:
                module.add_module(step, nn.Module())
            module = module._modules[step]
        module.register_parameter(last, nn.Parameter(folder.read(name), requires_grad=False))
    return root


@pytest.mark.slow
@pytest.mark.parametrize("donor_dtype", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("merge", MERGES)
def test_on_disk_every_merge_has_the_bits_of_the_live_one(
    merge: str, dtype: torch.dtype, donor_dtype: torch.dtype, tmp_path: Path
) -> None:
    target = write_folder(tmp_path / "target", "hubert", dtype, len(SHARES), width=24)
    family, width = ("hubert" if merge == "pretrained" else "bert"), (32 if merge == "crop" else 24)
    donor = write_folder(tmp_path / "donor", family, donor_dtype, len(SHARES), width, seed=5)
    options = {"lam": SHARES, **MERGES[merge]}
    plan = make_plan(target.attention(), donor.attention(), **options)
    found = merged(tmp_path, plan, target, donor)
    model = live(target)
    assert find_attention(model).tensors == target.attention().tensors
    Merge(model, plan, Donor(donor.path))
    for entry in plan.entries:
        expected, before = model.get_parameter(entry.target), target.read(entry.target)
        assert found[entry.target].dtype == dtype
        assert torch.equal(found[entry.target], expected), (entry.target, entry.lam)
        assert torch.equal(found[entry.target], before) == (entry.lam == 1), (
            entry.target,
            entry.lam,
        )
    assert torch.equal(found["other"], target.read("other"))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lam", [0.999, 0.95])
def test_lam_is_never_cast_to_the_weights_precision(
    dtype: torch.dtype, lam: float, tmp_path: Path
) -> None:
    target = write_folder(tmp_path / "target", "hubert", dtype, width=24)
    donor = write_folder(tmp_path / "donor", "bert", dtype, width=24)
    plan = make_plan(target.attention(), donor.attention(), lam=lam)
    found = merged(tmp_path, plan, target, donor)
    for entry in plan.entries:
        ours, theirs = target.read(entry.target).double(), donor.read(entry.donor).double()
        exact = lam * ours + (1 - lam) * theirs
        rounding = torch.finfo(dtype).eps * exact.abs() + 4 * torch.finfo(torch.float32).eps
        assert ((found[entry.target].double() - exact).abs() <= rounding).all()


def test_sums_between_two_float32_are_rounded_once() -> None:
    """float64 rounds these sums to the middle between two float32, which hides their side of it."""
    base = np.float64([1.0, 1.0 + 2**-23, 1.0, -1.0])
    step = np.float64([2**-24 + 2**-76, 2**-24 - 2**-77, 2**-24, 0.5])
    mixed = base + step
    assert mixed.astype(np.float32).tolist() == [1.0, 1 + 2**-22, 1.0, -0.5]
    _round_ties(mixed, base, step)
    assert mixed.astype(np.float32).tolist() == [1 + 2**-23, 1 + 2**-23, 1.0, -0.5]


@pytest.mark.slow
@pytest.mark.parametrize("donor_dtype", DTYPES)
@pytest.mark.parametrize("form", ["safetensors", "bin"])
@pytest.mark.parametrize("options", [{}, {"align": "heads"}, {"lam": 1}])
def test_both_ways_on_disk_have_the_donors_fingerprint(
    options: dict, form: str, donor_dtype: torch.dtype, tmp_path: Path
) -> None:
    target = write_folder(tmp_path / "target", "hubert")
    donor = write_folder(tmp_path / "donor", "bert", donor_dtype)
    if form == "bin":
        torch.save(load_file(donor.path / "model.safetensors"), donor.path / "pytorch_model.bin")
        (donor.path / "model.safetensors").unlink()
        donor = ModelFolder(donor.path)
    plan = make_plan(target.attention(), donor.attention(), **{"lam": 0.5, **options})
    merged(tmp_path, plan, target, donor)
    kept = json.loads((tmp_path / "out" / "mam_plan.json").read_text(encoding="utf-8"))
    keys = [entry.donor_key for entry in plan.entries]
    digest = hashlib.sha256()
    for entry in plan.entries:
        digest.update(repr((entry.donor_key, entry.shape)).encode())
        digest.update(donor.read(entry.donor).float().numpy().tobytes())
    assert kept["donor_sha256"] == Donor(donor.path).fingerprint(keys) == digest.hexdigest()


@pytest.mark.filterwarnings("error")  # NumPy's would be a second line on stderr
@pytest.mark.parametrize("options", [{}, {"method": "slerp"}])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_result_out_of_range_is_refused(
    dtype: torch.dtype, options: dict, tmp_path: Path
) -> None:
    target = write_folder(tmp_path / "target", "hubert", dtype)
    donor = write_folder(tmp_path / "donor", "bert", torch.float64)
    file = donor.path / "model.safetensors"
    tensors = load_file(file)
    tensors["encoder.layer.1.attention.self.key.bias"][3] = 1e300
    save_file(tensors, file)
    plan = make_plan(target.attention(), donor.attention(), lam=0.5, **options)
    with pytest.raises(MAMError, match=r"layers.1.attention.k_proj.bias' would hold values that"):
        merged(tmp_path, plan, target, donor)


@pytest.mark.parametrize("lam", [0.5, 1])
def test_the_donors_hash_is_kept(tmp_path: Path, lam: float) -> None:
    target = write_folder(tmp_path / "target", "hubert")
    donor = write_folder(tmp_path / "donor", "bert", torch.float16, layers=3)
    plan = make_plan(target.attention(), donor.attention(), lam=lam, layers=[1], projections="kv")
    merged(tmp_path, plan, target, donor)
    kept = json.loads((tmp_path / "out" / "mam_plan.json").read_text(encoding="utf-8"))
    keys = [entry.donor_key for entry in plan.entries]
    assert kept.pop("donor_sha256") == Donor(donor.path).fingerprint(keys)
    assert kept == json.loads(plan.to_json())


@pytest.mark.slow
def test_large_models_need_little_memory() -> None:
    """HuBERT-Large's and BERT-large's real shapes; about 10 s."""
    benchmark = runpy.run_path(str(BENCHMARK))
    with tempfile.TemporaryDirectory() as scratch:  # pytest would keep its own for three sessions
        row = benchmark["measure"](Path(scratch), lam=0.9, end=False)
    assert row["peak_mb"] < 500
    assert row["tensors_changed"] == 24 * 3 * 2 and row["weights_changed"] == 24 * 3
    assert row["others_changed"] == []
    assert row["worst_error_in_fp32_spacings"] < 2


def test_a_merge_just_below_the_middle_of_two_float32_is_rounded_once() -> None:
    """donor + λ · (target − donor) = 1 + 2⁻²³ + 2⁻²⁴ · (1 − 2⁻⁴⁶): float64 rounds it to the middle,
    and from there a second rounding would go to the even neighbour above."""
    target, donor = np.float32([65 + 2.0**-17]), np.float32([1 + 2.0**-23])
    lam = (2.0**23 - 1) * 2.0**-53
    live = linear(torch.from_numpy(target), torch.from_numpy(donor), lam)
    assert mix(target, donor, lam).tolist() == live.tolist() == [1 + 2.0**-23]
