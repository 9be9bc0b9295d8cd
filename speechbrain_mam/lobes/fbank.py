"""Kaldi's log-mel filter banks, for a batch of waveforms.

torchaudio's ``compliance.kaldi.fbank`` takes one waveform, builds its mel filters at each call and
multiplies with all of each filter, most of which is zeros. Here filters are made once, by
torchaudio, and only their bands are used. The steps and their order are Kaldi's, so that the values
are the same to rounding.
"""

from __future__ import annotations

import torch
import torchaudio.compliance.kaldi as kaldi
from torch import Tensor, nn

SAMPLE_RATE_HZ = 16000
FRAME_SAMPLES = 400
"""Samples in a frame: 25 ms."""
SHIFT_SAMPLES = 160
"""Samples between the starts of two frames: 10 ms."""
_FFT = 512
_PREEMPHASIS = 0.97
_FULL_SCALE = 2.0**15
_BAND = 32
"""Neighbouring filters that are applied together, to the part of the spectrum that they cover."""
_CPU_FRAMES = 1000
"""Frames at a time on a CPU: what its cache holds. On a GPU, the whole batch is one piece."""


class FilterBanks(nn.Module):
    """Log-mel filter banks with Kaldi's defaults and no dither, of 16 kHz waveforms in [−1, 1].

    Frames of 25 ms every 10 ms, without those that would reach over the end; mean removed,
    pre-emphasis 0.97, Povey's window, power spectrum, 20 Hz to 8 kHz. The samples are scaled to
    16 bit first, as Kaldi reads them. Always computed in float32; no gradient reaches the waveform.

    Arguments
    ---------
    bins : int
        Number of mel filters.

    Example
    -------
    >>> FilterBanks()(torch.randn(2, 16000)).shape
    torch.Size([2, 98, 128])
    """

    def __init__(self, bins: int = 128):
        super().__init__()
        window = torch.hann_window(FRAME_SAMPLES, periodic=False).pow(0.85)
        filters, _ = kaldi.get_mel_banks(
            bins, _FFT, float(SAMPLE_RATE_HZ), 20.0, 0.0, 100.0, -500.0, 1.0
        )
        self.bins = bins
        # No buffers: `.half()` and `.double()` of a model would change their precision.
        self._constants = {torch.device("cpu"): (window, filters.t().contiguous())}
        self.bands: list[tuple[slice, slice]] = []
        for start in range(0, bins, _BAND):
            used = filters[start : start + _BAND].any(0).nonzero().flatten().tolist() or [0]
            self.bands.append((slice(used[0], used[-1] + 1), slice(start, start + _BAND)))

    @torch.no_grad()
    def forward(self, wav: Tensor) -> Tensor:
        """Filter banks ``[B, frames, bins]`` of waveforms ``[B, samples]``."""
        frames = frame_count(wav.shape[1])
        if not frames:
            return wav.new_zeros(len(wav), 0, self.bins, dtype=torch.float32)
        pieces = (wav,) if wav.device.type != "cpu" else wav.split(max(1, _CPU_FRAMES // frames))
        with torch.autocast(wav.device.type, enabled=False):
            return torch.cat([self._piece(piece.float(), frames) for piece in pieces])

    def _piece(self, wav: Tensor, count: int) -> Tensor:
        if wav.device not in self._constants:
            window, filters = self._constants[torch.device("cpu")]
            self._constants[wav.device] = window.to(wav.device), filters.to(wav.device)
        window, filters = self._constants[wav.device]
        frames = (wav * _FULL_SCALE).unfold(1, FRAME_SAMPLES, SHIFT_SAMPLES)
        frames = frames - frames.mean(2, keepdim=True)
        padded = frames.new_zeros(len(wav), count, _FFT)
        inner = padded[..., 1:FRAME_SAMPLES]  # the window is zero at the first sample
        # Product and sum are rounded one by one, as in Kaldi: a fused multiply-add would be closer
        # to the truth, and 0.1 % away from Kaldi in a quiet bin beside loud ones.
        torch.mul(frames[..., :-1], -_PREEMPHASIS, out=inner)
        inner += frames[..., 1:]
        inner *= window[1:]
        spectrum = torch.fft.rfft(padded)
        power = spectrum.real.square().add_(spectrum.imag.square())
        mel = [power[..., used] @ filters[used, band] for used, band in self.bands]
        return torch.cat(mel, dim=2).clamp_(min=torch.finfo(torch.float32).eps).log_()


def frame_count(samples: int) -> int:
    """Number of frames of a waveform.

    Example
    -------
    >>> frame_count(16000), frame_count(399)
    (98, 0)
    """
    return max(0, 1 + (samples - FRAME_SAMPLES) // SHIFT_SAMPLES)
