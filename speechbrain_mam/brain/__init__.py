"""MAMBrain, the mixin for a recipe's Brain: checkpoints, λ's history, what stays frozen.

It may import mam, learning, report.figures and what they may import.
"""
