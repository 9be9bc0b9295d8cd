"""What a recipe runs around its Brain: its YAML, its stages, folds, seeds, sweeps of a manifest.

It may import tasks, report and what they may import.
"""
