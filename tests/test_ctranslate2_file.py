"""The reader of CTranslate2's ``model.bin``, on a file written here."""

import struct

import numpy as np
import pytest

from speechbrain_mam.ctranslate2_file import read_model


def name(text: str) -> bytes:
    return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"


def variable(text: str, array: np.ndarray, type_id: int) -> bytes:
    head = struct.pack("<B", array.ndim) + struct.pack(f"<{array.ndim}I", *array.shape)
    return name(text) + head + struct.pack("<BI", type_id, array.nbytes) + array.tobytes()


WEIGHT = np.arange(6, dtype="<f2").reshape(2, 3)
WIDE = np.array([1.0, -2.5], dtype="<f4")
BRAIN_FLOAT = (WIDE.view("<u4") >> 16).astype("<u2")


@pytest.fixture
def content() -> bytes:
    variables = [
        variable("encoder/weight", WEIGHT, 4),
        variable("encoder/scale", BRAIN_FLOAT, 5),
        variable("heads", np.array(6, dtype="<i2"), 2),
    ]
    head = struct.pack("<I", 6) + name("TestSpec") + struct.pack("<II", 3, len(variables))
    tail = struct.pack("<I", 1) + name("decoder/weight") + name("encoder/weight")
    return head + b"".join(variables) + tail


def test_reads_variables_and_aliases(tmp_path, content):
    path = tmp_path / "model.bin"
    path.write_bytes(content)
    spec, variables = read_model(path)
    assert spec == "TestSpec"
    np.testing.assert_array_equal(variables["encoder/weight"], WEIGHT)
    np.testing.assert_array_equal(variables["encoder/scale"], WIDE)
    assert variables["heads"] == 6
    assert variables["decoder/weight"] is variables["encoder/weight"]


@pytest.mark.parametrize("kept", [0, 3, 10, 40, -1])
def test_a_truncated_file_is_a_clear_error(tmp_path, content, kept):
    path = tmp_path / "cut.bin"
    path.write_bytes(content[:kept])
    with pytest.raises(ValueError, match=r"cut\.bin.*not a complete CTranslate2 model"):
        read_model(path)


def test_a_foreign_file_is_a_clear_error(tmp_path):
    path = tmp_path / "foreign.bin"
    path.write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(ValueError, match=r"foreign\.bin: not a CTranslate2 model of version"):
        read_model(path)


def test_a_size_that_does_not_fit_the_shape(tmp_path, content):
    broken = content.replace(struct.pack("<BII", 2, 2, 3), struct.pack("<BII", 2, 2, 4), 1)
    path = tmp_path / "shape.bin"
    path.write_bytes(broken)
    with pytest.raises(ValueError, match=r"'encoder/weight' \(2, 4\) takes 16 bytes, not 12"):
        read_model(path)
