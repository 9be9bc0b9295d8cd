"""The picture of λ over the epochs: it is drawn in a size that can be kept and read."""

import numpy as np
import pytest
from matplotlib.image import imread

from speechbrain_mam.report.lambda_map import MAX_HEIGHT, MAX_WIDTH, plot_lambdas

DPI = 130


@pytest.mark.parametrize(
    ("epochs", "rows"),
    [(3, 4), (16, 24), (1200, 4), (3, 1152)],
    ids=["few", "many", "long", "heads"],
)
def test_size(tmp_path, epochs, rows):
    """Matplotlib refuses pictures of 65,536 pixels; a thousand epochs would be more."""
    lambdas = [{f"layer {i}": 0.9 + 0.0001 * (e + i) for i in range(rows)} for e in range(epochs)]
    plot_lambdas(range(epochs), lambdas, tmp_path / "lambdas.png")
    height, width, _ = np.shape(imread(tmp_path / "lambdas.png"))
    assert 600 <= width <= MAX_WIDTH * DPI + 1 and 300 <= height <= MAX_HEIGHT * DPI + 1
