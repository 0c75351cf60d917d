"""Makes plain functions of exported programs: weights bound, linear layers perhaps converted.

Workers only: imports torch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from operator import attrgetter
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Graph, GraphModule, Node

from headrace_server.models.precision import is_worth_it, lowered

Forward = Callable[..., tuple[Any, ...]]
"""Takes the leaves of a program's arguments, returns those of its answer."""


def plain_function(program: ExportedProgram, precision: str = "") -> tuple[Forward, int]:
    """A program as a function that does nothing but its operators, and how many of its linear
    layers compute in ``precision``.

    The code that `torch.export` generates packs and unpacks nested arguments, and calling the
    module runs its hooks: together some 75 µs a call, more than a small model takes. Guards repeat,
    at some 50 µs, the checks that every request has already passed, all but the ranges and the
    equality of dynamic dimensions. Looking weights up in the module costs 2 to 3 µs each.
    """
    module = program.module(check_guards=False)
    assert isinstance(module, GraphModule)
    module.graph.set_codegen(torch.fx.graph.CodeGen())
    constants = _as_arguments(module)
    count = _lower(module, constants, precision) if precision else 0
    ordered = [constants[node] for node in module.graph.nodes if node in constants]
    bare = GraphModule(module, module.graph)  # leaves behind the weights that no operator names
    return partial(bare.forward, *ordered), count


def _as_arguments(module: GraphModule) -> dict[Node, Any]:
    """Turn the tensors that a graph takes from its module into its first arguments."""
    graph = module.graph
    first = next(iter(graph.nodes))
    constants: dict[Node, Any] = {}
    found = []
    for node in graph.nodes:
        if node.op == "get_attr":
            value = attrgetter(node.target)(module)
            if isinstance(value, torch.Tensor):
                found.append((node, value))
    for node, value in found:
        node.replace_all_uses_with(_argument(graph, first, value, constants))
    for node, _ in found:
        graph.erase_node(node)
    return constants


def _argument(graph: Graph, before: Node, value: Any, constants: dict[Node, Any]) -> Node:
    with graph.inserting_before(before):
        node = graph.placeholder(f"headrace_constant_{len(constants)}")
    constants[node] = value
    return node


def _lower(module: GraphModule, constants: dict[Node, Any], precision: str) -> int:
    """Replace the linear layers with constant FP32 weights; returns how many."""
    graph = module.graph
    first = next(node for node in graph.nodes if node not in constants)
    count = 0
    for node in list(graph.nodes):
        if node.target is not torch.ops.aten.linear.default:
            continue
        x, weight, bias = (*node.args, None)[:3]
        if weight not in constants or not (bias is None or bias in constants):
            continue
        if not is_worth_it(constants[weight], precision):
            continue
        call, own = lowered(constants[weight], constants.get(bias), precision)
        arguments = [
            None if value is None else _argument(graph, first, value, constants) for value in own
        ]
        with graph.inserting_before(node):
            replaced = graph.call_function(call, (x, *arguments))
        node.replace_all_uses_with(replaced)
        graph.erase_node(node)
        count += 1
    for node in [node for node in constants if not node.users]:
        graph.erase_node(node)  # one that two layers share goes with the second
        del constants[node]
    return count
