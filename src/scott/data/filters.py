"""Which records are wanted: an expression over their columns, and limits on their size.

The expression is Python's grammar and no more of Python: names are columns, and there are comparisons, `and`, `or`,
`not`, `in`, arithmetic on numbers, and constants. Nothing is ever called.
"""

import ast
import operator
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from scott.data.records import Skip
from scott.errors import UserError

_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda item, container: item in container,
    ast.NotIn: lambda item, container: item not in container,
}
_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


_NODES = (ast.BoolOp, ast.BinOp, ast.UnaryOp, ast.Compare, ast.Name, ast.Constant, ast.Tuple, ast.List, ast.Load)
_OFFERED: tuple[type[ast.AST], ...] = (*_NODES, ast.And, ast.Or, ast.Not, ast.USub, *_COMPARE, *_ARITHMETIC)


DEEPEST = 100
"""Of an expression, whose parts are evaluated one within the other."""


class Where:
    """A condition such as `AESTHETIC_SCORE >= 6 and WIDTH >= 512`.

    Raises:
        UserError: not an expression, something in it that is not offered, or a column that `columns` lacks.
    """

    def __init__(self, expression: str, columns: Sequence[str]) -> None:
        try:
            self._tree = ast.parse(expression.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise UserError(f"got --where {expression[:200]!r}; expected e.g. 'WIDTH >= 512 and score > 6'") from None
        if (depth := _depth(self._tree)) > DEEPEST:
            raise UserError(f"got --where {expression[:200]!r}, {depth} deep; expected at most {DEEPEST}")
        for node in ast.walk(self._tree):
            constant = not isinstance(node, ast.Constant) or isinstance(node.value, str | int | float | None)
            if not isinstance(node, _OFFERED) or not constant:
                raise UserError(
                    f"got --where with {type(node).__name__} in {expression.strip()[:200]!r}; expected columns, "
                    "constants, comparisons, and, or, not, in, + - * /"
                )
            if isinstance(node, ast.Name) and node.id not in columns:
                raise UserError(
                    f"got --where with a column {node.id[:200]!r}; the source has {', '.join(columns) or 'none'}"
                )

    def __call__(self, columns: Mapping[str, Any]) -> bool:
        """Whether a record is wanted. What it lacks is None; where size, sums or content are asked of that, or of a
        value of another kind, it is not."""
        try:
            return bool(_value(self._tree, columns))
        except (TypeError, ValueError, ArithmeticError, RecursionError):
            return False


def _depth(tree: ast.AST) -> int:
    """How deep a tree is, whatever Python's own limit."""
    depth, level = 0, [tree]
    while level:
        depth, level = depth + 1, [child for node in level for child in ast.iter_child_nodes(node)]
    return depth


def _value(node: ast.expr, columns: Mapping[str, Any]) -> Any:
    match node:
        case ast.Name(id=name):
            return columns.get(name)
        case ast.Constant(value=value):
            return value
        case ast.BoolOp(op=op, values=values):
            return (all if isinstance(op, ast.And) else any)(_value(value, columns) for value in values)
        case ast.UnaryOp(op=op, operand=operand):
            value = _value(operand, columns)
            return not value if isinstance(op, ast.Not) else -value
        case ast.BinOp(left=left, op=op, right=right):
            operands = _value(left, columns), _value(right, columns)
            if not all(isinstance(operand, int | float) for operand in operands):
                raise TypeError("arithmetic is on numbers")
            return _ARITHMETIC[type(op)](*operands)
        case ast.Compare(left=left, ops=ops, comparators=comparators):
            values = [_value(operand, columns) for operand in (left, *comparators)]
            return all(_COMPARE[type(op)](*pair) for op, pair in zip(ops, pairwise(values), strict=True))
        case ast.Tuple(elts=elts) | ast.List(elts=elts):
            return [_value(entry, columns) for entry in elts]
        case _:
            raise AssertionError(f"{node} was not checked")


def check_size(width: int, height: int, min_size: int, max_aspect: float | None) -> None:
    """Raises `Skip` for a shorter side below `min_size`, or sides whose ratio is above `max_aspect`."""
    shorter, longer = sorted((width, height))
    if shorter < min_size:
        raise Skip("min-size", f"{width}x{height}")
    if max_aspect is not None and longer > max_aspect * shorter:
        raise Skip("max-aspect", f"{width}x{height}")
