"""What else a recipe needs, or will do, once MAM is in it."""

from __future__ import annotations

import ast

from speechbrain_mam.recipe_edits.hyperparams import Hyperparams, argument, leaves, tag
from speechbrain_mam.recipe_edits.script import LOST, WRAPPED, calls_super, methods

ADAPTERS = ("LoRA", "Adapter", "AdaptedModel", "peft")
SAVES = ("save_checkpoint", "save_and_keep_only")


def notes(brain: ast.ClassDef, yaml: Hyperparams, target: str) -> list[str]:
    """One sentence for each thing that somebody who reads the nine lines cannot see."""
    node = yaml.value(target)
    found = [*_frozen(yaml, target), *_adapters(yaml, target)]
    if "modules" in yaml.keys and not yaml.refers(yaml.value("modules"), target):
        found.append(
            f"modules: '{target}' is not in the YAML's 'modules'; training starts only if the "
            "Brain is given it there"
        )
    if tag(node).startswith("!apply:"):
        found.append(f"target: what '{tag(node)}' returns is looked at when training starts")
    found.append(
        "bias: where only one of target and donor has one, the target's stays "
        "('bias: where_both', the default; 'merge' makes it an error)"
    )
    if any(_saves_at_test(method) for method in methods(brain)):
        found.append(
            "checkpoints: the script saves at TEST, where λ is folded; what it saves are the "
            "target's own weights and λ all the same, so that it can be resumed"
        )
    own = [method.name for method in methods(brain) if method.name in WRAPPED]
    if own:
        found.append(f"methods: MAM's part runs around the script's own {', '.join(own)}")
    found += [
        f"methods: '{method.name}' does not call super().{method.name}: {LOST[method.name]}"
        for method in methods(brain)
        if method.name in LOST and not calls_super(method)
    ]
    return found


def _frozen(yaml: Hyperparams, target: str) -> list[str]:
    given = argument(yaml.value(target), "freeze")
    said = "" if given is None else yaml.setting(given)
    if said.lower() != "true":
        return []
    return [
        f"freeze: '{target}' is frozen; λ is learned alone, and its weights keep every bit. "
        "Gradients go through it, so that a step takes longer and more memory; to learn both, "
        "'freeze: False'"
    ]


def _adapters(yaml: Hyperparams, target: str) -> list[str]:
    for key, (_, node) in yaml.keys.items():
        tags = [tag(part) for part in leaves(node)]
        if not any(word in one for one in tags for word in ADAPTERS):
            continue
        if key == target or yaml.refers(node, target):
            return [
                f"adapters: '{key}' puts adapters into '{target}'; where they replace a query, key "
                "or value projection, training is refused: let them leave these out, or leave "
                "these out of 'projections' or 'layers'"
            ]
    return []


def _saves_at_test(method: ast.FunctionDef) -> bool:
    for node in ast.walk(method):
        if isinstance(node, ast.If) and "TEST" in ast.unparse(node.test):
            for part in node.body:
                for call in ast.walk(part):
                    if isinstance(call, ast.Attribute) and call.attr in SAVES:
                        return True
    return False
