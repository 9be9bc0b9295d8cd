"""What is merged and how: methods, alignment, the plan, a merge in memory and one on disk.

It may import donors, model_files, architectures, options, atomic, errors.
"""
