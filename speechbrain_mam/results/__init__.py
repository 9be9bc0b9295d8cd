"""Finished runs, read from their folders and compared: errors, intervals, verdicts.

It may import atomic and errors.
"""
