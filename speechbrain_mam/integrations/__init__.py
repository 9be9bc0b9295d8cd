"""Learnable-MAM in the training loops of other libraries; each module needs its library.

``speechbrain_mam.integrations.transformers`` is for transformers' ``Trainer`` (extra ``trainer``).
Nothing here imports SpeechBrain, and nothing below imports what is here.
"""
