"""Whom the donor's tensors come from: one model, several, or a control that holds nothing.

It may import model_files, architectures, options, errors.
"""
