"""The packaged BEATs-mini and what made it: files, features, targets, one tiny training."""

import struct
import zlib

import numpy as np
import pytest
import soundfile
import torch

from speechbrain_mam.embedded.corpora import mini_corpus
from speechbrain_mam.lobes.beats import BEATsEncoder
from speechbrain_mam.lobes.beats_model import checkpoint_file
from tools.embedded import train_beats_mini
from tools.embedded.beats_mini_files import label_of, qt_resources, recordings
from tools.embedded.beats_mini_model import (
    CFG,
    CLIP_ROWS,
    CLIP_SAMPLES,
    MEL_PATCHES,
    encode,
    export,
    from_patches,
    make_model,
    pass_through,
    to_patches,
)
from tools.embedded.beats_mini_targets import Quantizer, teacher_rows
from tools.embedded.evaluate_beats_mini import (
    clip_features,
    fold_accuracies,
    read_corpus,
)
from tools.embedded.make_training_sounds import Sounds, load_recordings, make_clip

NAME = "speechbrain_mam/beats-mini"
TINY = CFG | {
    **{"encoder_layers": 2, "encoder_embed_dim": 64, "embed_dim": 32, "conv_pos": 16},
    **{"encoder_ffn_embed_dim": 64, "encoder_attention_heads": 2, "conv_pos_groups": 4},
}


@pytest.fixture(scope="module")
def encoder() -> BEATsEncoder:
    return BEATsEncoder(NAME, freeze=True)


def test_checkpoint_is_small_and_half_precision():
    path = checkpoint_file(NAME)
    assert path.stat().st_size <= 20e6
    content = torch.load(path, weights_only=True)
    assert set(content) == {"cfg", "model"}
    assert {tensor.dtype for tensor in content["model"].values()} == {torch.float16}


def test_it_loads_in_single_precision_with_the_donors_shape(encoder):
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.float32}
    cfg = encoder.cfg
    assert cfg["encoder_embed_dim"] == 384
    assert cfg["encoder_attention_heads"] == 6
    assert cfg["deep_norm"] and cfg["gru_rel_pos"] and cfg["relative_position_embedding"]
    assert not cfg["layer_norm_first"]


def test_features_are_finite_at_any_length(encoder):
    for seconds in (0.5, 5.0):
        samples = int(16000 * seconds)
        wavs = torch.stack([0.1 * torch.randn(samples), torch.zeros(samples)])
        features, _ = encoder(wavs)
        assert features.shape[2] == 384
        assert features.isfinite().all()


@pytest.mark.slow
def test_a_probe_hears_sounds_and_leaves_something_to_gain(encoder):
    """A third of the mini corpus; about 10 s on one core."""
    clips = read_corpus(mini_corpus("mini_esc50"))[::3]
    features = clip_features(encoder, [path for path, _, _ in clips])
    labels, folds = (torch.tensor([clip[i] for clip in clips]) for i in (1, 2))
    found = fold_accuracies(features, labels, folds)
    assert 0.5 < sum(found.values()) / len(found) < 0.97


def test_filter_banks_survive_patches_and_training_hears_what_users_hear():
    model = make_model(TINY).eval()
    wavs = 0.1 * torch.randn(2, CLIP_SAMPLES)
    fbank = model.preprocess(wavs)
    assert torch.equal(from_patches(to_patches(fbank)), fbank)
    with torch.no_grad():
        features = model.extract_features(wavs, torch.ones(2))[0]
        torch.testing.assert_close(encode(model, fbank), features)


def test_patches_know_their_band_before_any_training():
    model = make_model().eval()
    with torch.no_grad():
        fbank = model.preprocess(0.1 * torch.randn(2, CLIP_SAMPLES))
        features = model.patch_embedding(fbank[:, None]).flatten(2).transpose(1, 2)
        features = model.post_extract_proj(model.layer_norm(features))
        codes = model.encoder.pos_conv(features.transpose(1, 2))[:, 1 : 1 + MEL_PATCHES]
    bands = torch.arange(codes.shape[2]) % MEL_PATCHES
    assert torch.equal(codes.argmax(1), bands.expand(2, -1))


def test_the_quantizer_uses_many_labels_and_not_the_gain():
    patches = torch.randn(4, 104, 256)
    labels = Quantizer()(patches)
    assert len(labels.unique()) > 100
    assert torch.equal(Quantizer()(3 * patches + 1), labels)


def test_layers_that_pass_through_add_nothing():
    model = make_model(TINY).eval()
    pass_through(model, 1)
    fbank = model.preprocess(0.1 * torch.randn(1, CLIP_SAMPLES))
    with torch.no_grad():
        torch.testing.assert_close(encode(model, fbank), encode(model, fbank, 1))


def resource_file(name: str, content: bytes) -> bytes:
    """A Qt resource file, version 1, with one compressed file."""
    packed = struct.pack(">I", len(content)) + zlib.compress(content)
    data = struct.pack(">I", len(packed)) + packed
    root = struct.pack(">HI", 0, 0)
    names = root + struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")
    tree = struct.pack(">IHII", 0, 2, 1, 1) + struct.pack(">IHHHI", len(root), 1, 0, 0, 0)
    head = struct.pack(">4I", 1, 20, 20 + len(tree), 20 + len(tree) + len(data))
    return b"qres" + head + tree + data + names


def test_recordings_come_out_of_folders_and_resources(tmp_path):
    package = tmp_path / "game"
    package.mkdir()
    wave = 0.5 * np.sin(np.arange(8000) / 5)
    soundfile.write(package / "Dog-2.wav", np.stack([wave, wave], 1), 8000)
    content = (package / "Dog-2.wav").read_bytes()
    (package / "cat.rcc").write_bytes(resource_file("cat.wav", content))
    (package / "broken.ogg").write_bytes(b"OggS")
    assert list(qt_resources((package / "cat.rcc").read_bytes())) == [("/cat.wav", content)]
    found = list(recordings(package))
    assert sorted(recording.label for recording in found) == ["//cat", "game/dog"]
    for recording in found:
        assert abs(recording.wave.size - 16000) < 50
        assert np.abs(recording.wave).max() == pytest.approx(1, abs=1e-5)
    assert label_of("a/Music/Song.ogg") == "music"


@pytest.mark.slow
def test_one_tiny_training_from_recordings_to_a_checkpoint(tmp_path, monkeypatch):
    """Clips, two steps of each phase, a file that BEATsEncoder reads; about 5 s."""
    package = tmp_path / "recordings" / "game"
    package.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("dog", "bell"):
        soundfile.write(package / f"{name}.wav", 0.1 * rng.standard_normal(9000), 16000)
    noise = [rng.standard_normal(16000 * 3).astype(np.float32)]
    sounds = Sounds(load_recordings(tmp_path / "recordings"), noise, noise)
    drawn = [make_clip(np.random.default_rng(i), sounds) for i in range(8)]
    wavs = torch.from_numpy(np.stack([clip for clip, _ in drawn]))
    assert wavs.shape == (8, CLIP_SAMPLES)
    assert wavs.abs().max() <= 1
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    (data / "kinds.txt").write_text("\n".join(sounds.kinds) + "\n")
    rows = torch.randn(8, CLIP_ROWS, 768).half()
    kinds = torch.tensor([[numbers[0], numbers[-1]] for _, numbers in drawn])
    torch.save(
        {"wavs": (wavs * 32767).short(), "rows": rows, "kinds": kinds}, data / "1.pt"
    )  # what make_training_sounds writes
    shape = CFG | {"encoder_ffn_embed_dim": 64}
    monkeypatch.setattr(train_beats_mini, "make_model", lambda: make_model(shape))
    arguments = [
        *("--data", str(data), "--out", str(out), "--ssl_steps", "2", "--batch_size", "2"),
        *("--shallow_steps", "2"),
        *("--epoch_steps", "2", "--steps"),
    ]
    train_beats_mini.main([*arguments, "2"])
    train_beats_mini.main([*arguments, "4"])  # goes on where the first one stopped
    log = (out / "train_log.txt").read_text()
    assert "step 2 (kinds) epoch 1" in log
    assert "step 4 (kinds) epoch 2" in log
    features, _ = BEATsEncoder(out / "beats_mini.pt")(wavs)
    assert features.shape == (8, 8 * CLIP_ROWS, 384)
    assert features.isfinite().all()


def test_rows_of_a_teacher_fit_the_patches():
    class Teacher:
        layers = [torch.nn.Identity()] * 4
        layer_norm = torch.nn.LayerNorm(8)
        positions = torch.zeros(1500, 8)

        def embed(self, wavs):
            return torch.randn(len(wavs), 102, 8)

    assert teacher_rows(Teacher(), torch.randn(2, CLIP_SAMPLES)).shape == (2, CLIP_ROWS, 16)


def test_export_keeps_what_the_model_computes(tmp_path):
    model = make_model(TINY).eval()
    export(model, tmp_path / "tiny.pt")
    wavs = 0.1 * torch.randn(1, 16000)
    with torch.no_grad():
        wanted = model.extract_features(wavs, torch.ones(1))[0]
        found, _ = BEATsEncoder(tmp_path / "tiny.pt", freeze=True)(wavs)
    torch.testing.assert_close(found, wanted, atol=2e-2, rtol=2e-2)
