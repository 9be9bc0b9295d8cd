"""λ in a live model: merged modules in the place of projections, trained and then folded.

It may import merging and what merging may import.
"""
