"""mutmut, with the functions of tables among what it mutates: `python tools/mutants.py run "burnish.importance*"`.

mutmut passes over every decorated function, since copies of it would be decorated too. Here nearly every function that
matters is decorated, by what puts it into its table. Those are mutated as well: the row of the table stays one, and
calls whichever copy is under test. What is mutated, and by which tests it is judged, is in pyproject.toml.
"""

from __future__ import annotations

import sys
from typing import Any

import libcst as cst
from mutmut.__main__ import cli
from mutmut.mutation import file_mutation

REGISTERING = frozenset({
    "advantage", "aggregation", "divergence", "importance_correction", "kl_estimator", "policy_loss",
    "preference_loss", "reward_loss",
})  # fmt: skip
_skips = file_mutation.MutationVisitor._skip_node_and_children
_arrange = file_mutation.function_trampoline_arrangement


def is_registered(node: cst.CSTNode) -> bool:
    """Whether a node is a function whose decorators do nothing but put it into a table."""
    if not isinstance(node, cst.FunctionDef) or not node.decorators:
        return False
    calls = [each.decorator for each in node.decorators]
    return all(isinstance(c, cst.Call) and isinstance(c.func, cst.Name) and c.func.value in REGISTERING for c in calls)


def skips(self: Any, node: cst.CSTNode) -> bool:
    """As mutmut, but not for what `is_registered`."""
    return not is_registered(node) and _skips(self, node)


def arrange(function: cst.FunctionDef, mutants: Any, class_name: str | None) -> Any:
    """As mutmut, with the copies of a registered function undecorated: only the one that chooses among them is."""
    if not is_registered(function):
        return _arrange(function, mutants, class_name)
    declared, copies, assigned, names = _arrange(function.with_changes(decorators=[]), mutants, class_name)
    chooser, *others = copies
    chooser = chooser.with_changes(decorators=[*function.decorators, *chooser.decorators])
    return declared, [chooser, *others], assigned, names


def main() -> None:
    """Run mutmut's own command line."""
    file_mutation.MutationVisitor._skip_node_and_children = skips
    file_mutation.function_trampoline_arrangement = arrange
    sys.argv[0] = "mutmut"
    cli()


if __name__ == "__main__":
    main()
