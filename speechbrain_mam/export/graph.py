"""A forward pass as YAML: the steps of a ``torch.fx.GraphModule`` for HyperPyYAML.

SpeechBrain's interfaces call one module with waveforms and lengths. Chaining modules is not enough
for what lies between them (a mask from lengths, a tensor out of a model's output), and a class of
this package would have to be installed where the model runs. So the steps are written down.
"""

from __future__ import annotations

from collections.abc import Mapping
from json import dumps
from typing import Any

import yaml

OUTPUT = "output"


class GraphYaml:
    """Collects steps; each is a key of the YAML that later ones refer to as ``<name>``.

    Arguments
    ---------
    *inputs : str
        Names of the arguments of ``forward``.

    Example
    -------
    >>> from hyperpyyaml import load_hyperpyyaml
    >>> graph = GraphYaml("x")
    >>> graph.call("twice", "torch.mul", input="<x>", other=2)
    >>> import torch
    >>> module = load_hyperpyyaml(graph.module("double", "<twice>"))["double"]
    >>> module(torch.tensor([1, 2]))
    tensor([2, 4])
    """

    def __init__(self, *inputs: str):
        self.lines = ["graph: !new:torch.fx.Graph"]
        for name in inputs:
            self.lines.append(f"{name}: !apply:torch.fx.Graph.placeholder [!ref <graph>, {name}]")

    def call(self, step: str, function: str, /, *args: Any, **kwargs: Any) -> None:
        """A step that calls a function, named by its path."""
        self._add(step, "call_function", f"!name:{function}", args, kwargs)

    def run(self, step: str, module: str, /, **kwargs: Any) -> None:
        """A step that calls one of the modules."""
        self._add(step, "call_module", module, (), kwargs)

    def ask(self, step: str, method: str, /, *args: Any, **kwargs: Any) -> None:
        """A step that calls a method of its first argument."""
        self._add(step, "call_method", method, args, kwargs)

    def _add(
        self, step: str, kind: str, what: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        values = ", ".join(f"{key}: {_value(value)}" for key, value in kwargs.items())
        given = ", ".join(map(_value, args))
        positional = f"!new:builtins.tuple [[{given}]]" if args else "null"
        self.lines += [
            f"{step}: !apply:torch.fx.Graph.{kind}",
            "    - !ref <graph>",
            f"    - {what}",
            f"    - {positional}",
            f"    - {{{values}}}",
        ]

    def module(self, name: str, result: str, **modules: str) -> str:
        """The YAML, with the module under ``name``.

        Arguments
        ---------
        name : str
            The key of the module.
        result : str
            The step that ``forward`` returns.
        **modules : str
            The modules that :meth:`run` calls, as references.
        """
        root = ", ".join(f"{key}: {_value(value)}" for key, value in modules.items())
        ending = [
            f"{OUTPUT}: !apply:torch.fx.Graph.output [!ref <graph>, {_value(result)}]",
            f"{name}: !new:torch.fx.GraphModule",
            f"    root: {{{root}}}",
            "    graph: !ref <graph>",
        ]
        return "\n".join([*self.lines, *ending]) + "\n"


def _value(value: Any) -> str:
    if isinstance(value, str) and value.startswith("<"):
        return f"!ref {value}"
    # json writes 1e-07, which YAML reads as a string
    return yaml.safe_dump(value).split("\n", 1)[0] if isinstance(value, float) else dumps(value)
