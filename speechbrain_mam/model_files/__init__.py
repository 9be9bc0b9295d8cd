"""A model on disk without the model: found, opened, its tensors read one at a time.

It may import architectures, errors.
"""
