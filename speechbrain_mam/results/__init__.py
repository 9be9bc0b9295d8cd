"""Finished runs, read from their folders, and compared with each other: errors, intervals, verdicts.

It may import atomic and errors.
"""
