"""Whisper's absolute positions inside an ordinary HuBERT.

Whisper adds sinusoids of the absolute position, without which its attention is lost. A
convolution cannot know the position, except from the zeros before the first frame: over a channel
of constant value c, the taps w_0, w_1, … that look 0, 1, … frames back give c · (w_0 + … + w_t)
at frame t. So in each group of HuBERT's positional convolution the channel that varies least is
made constant, and the taps on it are the differences of the sinusoids: an ordinary HuBERT that has
Whisper's positions, exactly, up to half the kernel's length, and keeps the last one after it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import HubertForCTC

#: Added inside the positional convolution's GELU and taken off in the projection's bias: at these
#: values GELU is close to the identity and has an inverse. Small, for bfloat16's sake.
POSITION_OFFSET = 3.0


def place_positions(model: HubertForCTC, positions: Tensor, embedded: Tensor) -> Tensor:
    """Give HuBERT Whisper's positions (see the head of this file), in place.

    Arguments
    ---------
    model : HubertForCTC
        With a projection that was regressed onto Whisper's embedded frames.
    positions : torch.Tensor
        Whisper's sinusoids ``[1500, C]``.
    embedded : torch.Tensor
        Some of Whisper's embedded frames ``[N, C]``, which tell the channels that vary least.

    Returns
    -------
    torch.Tensor
        The channels that were made constant ``[groups]``: they must stay so in training.
    """
    projection = model.hubert.feature_projection.projection
    conv = model.hubert.encoder.pos_conv_embed.conv
    width, groups, kernel = conv.out_channels, conv.groups, conv.kernel_size[0]
    size, reach = width // groups, kernel // 2
    constant = embedded.std(0).view(groups, size).argmin(1) + size * torch.arange(groups)
    with torch.no_grad():
        projection.weight[constant] = 0.0
        projection.bias[constant] = embedded.mean(0)[constant]
        projection.bias.sub_(POSITION_OFFSET)
        # SpecAugment puts this in the place of frames; the constant channels must stay.
        model.hubert.masked_spec_embed.copy_(projection.bias)
        # What the convolution must reach before its GELU, and how much of it each tap adds.
        wanted = inverse_gelu(POSITION_OFFSET + positions[: reach + 1])
        steps = torch.diff(wanted, dim=0, prepend=torch.full((1, width), POSITION_OFFSET))
        value = projection.bias[constant].repeat_interleave(size)
        taps = torch.zeros(width, size, kernel)
        column = (constant % size).repeat_interleave(size)
        taps[torch.arange(width), column, : reach + 1] = (steps / value).flip(0).T
        conv.bias.fill_(POSITION_OFFSET)
        # Weight norm is one scale a tap, times a direction. Directions of unit variance move
        # little under Adam's steps; the taps that look ahead start at scale 0.
        scale = taps.square().sum((0, 1), keepdim=True).sqrt()
        random = torch.randn(taps.shape, generator=torch.Generator().manual_seed(0))
        direction = torch.where(scale > 0, taps * (width * size) ** 0.5 / scale, random)
        conv.parametrizations.weight.original0.copy_(scale)
        conv.parametrizations.weight.original1.copy_(direction)
    return constant


def hold_positions(model: HubertForCTC) -> None:
    """Keep what ``place_positions`` made as it is in training, in place.

    Freezes the positional convolution and SpecAugment's frame, and zeroes the gradients of the
    constant channels, which are known by their rows of zeros in the projection.
    """
    projection = model.hubert.feature_projection.projection
    moves = (projection.weight.detach() != 0).any(1).float()
    projection.weight.register_hook(lambda gradient: gradient * moves[:, None])
    projection.bias.register_hook(lambda gradient: gradient * moves)
    model.hubert.encoder.pos_conv_embed.requires_grad_(False)
    model.hubert.masked_spec_embed.requires_grad_(False)


def inverse_gelu(value: Tensor) -> Tensor:
    """``x`` with ``gelu(x) = value``, for values of 1 and more.

    Example
    -------
    >>> inverse_gelu(nn.functional.gelu(torch.tensor([2.0, 3.0]))).round(decimals=3)
    tensor([2., 3.])
    """
    x = value.clone()
    for _ in range(20):
        x = x + value - nn.functional.gelu(x)
    return x
