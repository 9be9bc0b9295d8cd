"""Thin wrappers around transformers' and SpeechBrain's own models."""
