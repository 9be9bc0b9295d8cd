"""MAM written into a recipe that has none: nine lines, and no other byte of its text changes.

``ast`` and ``ruamel.yaml`` say where the Brain's class and the target's key stand; the lines are
inserted there, and nothing is printed anew. It needs neither torch nor SpeechBrain.
"""

from speechbrain_mam.recipe_edits.add import Addition, add_mam

__all__ = ["Addition", "add_mam"]
