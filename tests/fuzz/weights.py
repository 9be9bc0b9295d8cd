"""Files of weights made wrong, and which mutators go with which file."""

from __future__ import annotations

import io
import random
import struct
import zipfile

from mutators import (
    BYTES,
    JSON,
    ODD_NUMBERS,
    ODD_VALUES,
    ODD_WORDS,
    TEXT,
    YAML,
    Code,
    Mutator,
    another_file,
    code,
    cut,
    deep,
    flip,
    insert,
    tree,
    word,
)


def header(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    """A safetensors header that says something else of its bytes."""
    (length,) = struct.unpack("<Q", content[:8])
    what, changed = rng.choice([tree, tree, tree, word, deep])(content[8 : 8 + length], rng)
    size = rng.choice([len(changed)] * 8 + [len(changed) + 1, 2**40, 0, 2**63])
    return f"header: {what}", struct.pack("<Q", size) + changed + content[8 + length :]


def torch_content(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    """What ``torch.save`` wrote, with an odd value, name, type or layout in it."""
    import torch

    found = torch.load(io.BytesIO(content), weights_only=True)
    inner = found["model"] if "model" in found and rng.random() < 0.6 else found
    name = rng.choice(list(inner))
    value = inner[name]
    what = rng.choice(["odd", "code", "gone", "renamed", "tensor", "tensor", "whole"])
    if what == "odd":
        inner[name] = rng.choice(ODD_VALUES)
    elif what == "code":
        inner[name] = Code()
    elif what == "gone":
        inner.pop(name)
    elif what == "renamed":
        inner[rng.choice([*ODD_WORDS, *ODD_NUMBERS, None, (1, 2)])] = inner.pop(name)
    elif what == "whole":
        found = rng.choice([[], None, torch.zeros(3), {}, {"model": {}}, {"cfg": {}}, 3, "a"])
    else:
        tensor = value if torch.is_tensor(value) else torch.ones(2, 2)
        odd = [tensor.to(torch.int64), tensor.to_sparse(), tensor[:0], tensor * float("nan"),
               tensor.unsqueeze(0), tensor.to(torch.complex64), tensor.bool(), tensor.flatten(),
               torch.zeros((), dtype=torch.float16),
               tensor.to(torch.float8_e4m3fn), tensor.to("meta")]  # fmt: skip
        inner[name] = rng.choice(odd)
    stream = io.BytesIO()
    torch.save(found, stream, _use_new_zipfile_serialization=rng.random() < 0.8)
    return f"{str(name)[:60]!r} {what}", stream.getvalue()


def zip_member(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    """A file of the archive that ``torch.save`` wrote is another one; the archive is whole."""
    written, stream = zipfile.ZipFile(io.BytesIO(content)), io.BytesIO()
    names = written.namelist()
    odd = names[0] if rng.random() < 0.7 else rng.choice(names)  # the pickle comes first
    with zipfile.ZipFile(stream, "w") as changed:
        for name in names:
            part, what = written.read(name), ""
            if name == odd:
                what, part = rng.choice([flip, cut, insert, code, another_file])(part, rng)
                shown = what
            changed.writestr(name, part)
    return f"{odd}: {shown}", stream.getvalue()


def onnx_content(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    """An ONNX model with odd dimensions, types, names or files that its values lie in."""
    import onnx

    model = onnx.load_from_string(content)
    one, node = rng.choice(model.graph.initializer), rng.choice(model.graph.node)
    what = rng.choice(["dims", "type", "raw", "name", "node", "input", "elsewhere", "none"])
    if what == "dims":
        one.dims[rng.randrange(len(one.dims))] = rng.choice([0, -1, 1, 2**40, 2**62, 17])
    elif what == "type":
        one.data_type = rng.choice([0, 2, 7, 8, 10, 11, 16, 17, 99, -1])
    elif what == "raw":
        one.raw_data = rng.choice([b"", one.raw_data[:-1], b"\xff" * len(one.raw_data)])
    elif what == "name":
        one.name = rng.choice(ODD_WORDS[:40])
    elif what == "node":
        node.name = rng.choice([*ODD_WORDS[:40], "/MatMul", "MatMul", node.name * 2])
    elif what == "input":
        del node.input[:]
    elif what == "elsewhere":
        one.ClearField("raw_data")
        one.data_location = onnx.TensorProto.EXTERNAL
        places = ["../secret.bin", "/etc/passwd", "missing.bin", "", "a\0", "."]
        values = {"location": rng.choice(places), "offset": rng.choice(["0", "-1", "x", "9" * 30])}
        for key, value in values.items():
            entry = one.external_data.add()
            entry.key, entry.value = key, value
    else:
        model.ClearField("graph")
    return f"onnx: {what} of {one.name!r}", model.SerializeToString()


SAFETENSORS: list[Mutator] = [header, header, header, *BYTES]
TORCH: list[Mutator] = [torch_content, torch_content, torch_content, zip_member, zip_member, code,
                        *BYTES]  # fmt: skip
ONNX: list[Mutator] = [onnx_content, onnx_content, *BYTES]

BY_SUFFIX: dict[str, list[Mutator]] = {
    ".json": JSON,
    ".csv": TEXT,
    ".txt": TEXT,
    ".yaml": YAML,
    ".safetensors": SAFETENSORS,
    ".bin": BYTES,
    ".pt": TORCH,
    ".ckpt": TORCH,
    ".onnx": ONNX,
    ".wav": BYTES,
    ".flac": BYTES,
    ".ogg": BYTES,
}
