"""Thin wrappers around transformers' and SpeechBrain's own models, for a YAML's ``!new:``.

It may import model_files, architectures and errors.
"""
