"""Which λ: grids and searches on a model that is loaded once, and a probe of its gradient.

It may import mam, merging, report.figures and what they may import.
"""
