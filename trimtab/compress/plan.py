"""Plans and recipes: techniques to and from JSON and text, checked, never evaluated."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields
from typing import Any

import trimtab.compress as public
from trimtab.compress.order import check_order
from trimtab.compress.settings import made, signature
from trimtab.compress.technique import Technique
from trimtab.core.context import Context
from trimtab.core.errors import InputError
from trimtab.core.plan import Plan
from trimtab.graph.model import Graph


def techniques() -> dict[str, type[Any]]:
    """The public techniques by name: everything in `trimtab.compress.__all__`."""
    return {name: getattr(public, name) for name in public.__all__}


def step_of(technique: Technique) -> dict[str, Any]:
    """A technique as a step of a plan: its name, and every setting that is not its default.

    Raises:
        InputError: it is not one of the public techniques.
    """
    name = type(technique).__name__
    if techniques().get(name) is not type(technique):
        raise InputError("plan: not a public technique", got=name, expected=", ".join(techniques()))
    settings: dict[str, Any] = {"technique": name}
    for field in fields(technique):  # type: ignore[arg-type]
        value = getattr(technique, field.name)
        default = field.default if field.default_factory is MISSING else field.default_factory()
        if value != default:
            settings[field.name] = _json(value)
    return settings


def _json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _json(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [_json(v) for v in value]
    return value


def technique_of(step: Mapping[str, Any]) -> Technique:
    """The technique that a step of a plan names, with its settings checked.

    Raises:
        InputError: no public technique has this name, or a setting is unknown, missing or of a wrong type.
    """
    name = step.get("technique")
    known = techniques()
    if not isinstance(name, str) or name not in known:
        raise InputError("plan: technique", got=repr(name), expected=f"one of {', '.join(known)}")
    technique: Technique = made(known[name], {k: v for k, v in step.items() if k != "technique"})
    return technique


def apply_plan(graph: Graph, plan: Plan, context: Context) -> Graph:
    """Do the steps of a plan, in order, to a copy of the graph.

    Raises:
        InputError: a step is wrong, or can't follow one before it; the message says which, and nothing is done
            before all are checked.
    """
    chain = []
    for i, each in enumerate(plan.steps):
        try:
            chain.append(technique_of(each))
        except InputError as error:
            raise InputError(f"plan: step {i + 1}: {error}") from error
    check_order(chain)
    result = graph.copy()
    for i, technique in enumerate(chain):
        context.progress(type(technique).__name__, i, len(chain))
        result = technique.apply(result, context)
    return result


def resolved(technique: Technique, graph: Graph, context: Context) -> tuple[Technique, ...]:
    """The steps that a technique comes to on this graph, with ratios and counts settled into indices and names."""
    resolve: Callable[[Graph, Context], Technique | tuple[Technique, ...]] | None
    resolve = getattr(technique, "resolve", None)
    settled = technique if resolve is None else resolve(graph, context)
    return settled if isinstance(settled, tuple) else (settled,)


Doubt = Callable[[int, Technique, Graph], Sequence[Technique]]
"""From a technique's place, what it was resolved to, and the network that it comes to: what of it is kept."""


def plan_of(
    techniques: Sequence[Technique], graph: Graph, context: Context, doubt: Doubt = lambda _, each, __: (each,)
) -> Plan:
    """Techniques as the steps of a plan, each resolved on the network that the ones before it leave.

    With a store in the context, what a technique came to is kept there under its place: a run that is started
    again goes on with the same decisions.

    Args:
        techniques: in order.
        graph: the network.
        context: of the run; its store is this run's own.
        doubt: says what is kept of each.

    Raises:
        InputError: a technique can't follow one before it, or does not fit the network.
    """
    check_order(techniques)
    steps: list[dict[str, Any]] = []
    for i, technique in enumerate(techniques):

        def settle(i: int = i, technique: Technique = technique, graph: Graph = graph) -> list[dict[str, Any]]:
            found = resolved(technique, graph, context)
            return [step_of(kept) for each in found for kept in doubt(i, each, graph)]

        settled = settle() if context.store is None else context.store.once(f"resolved-{i}", settle)
        steps += settled
        if i + 1 < len(techniques):
            for each in settled:
                graph = technique_of(each).apply(graph, context)
    return Plan(tuple(steps))


def recipe(text: str) -> Technique:
    """Read `prune(ratio=0.5)`, `prune(0.5)`, `quantise(bits=8)`, `quantise(int8)`: literals only.

    Names of techniques are taken in any case; a first value without a name is the first setting.

    Raises:
        InputError: it is no call of a public technique with literal settings.
    """
    name, values, settings = _parsed(text)
    known = {n.lower(): kind for n, kind in techniques().items()}
    kind = known.get(name.lower().replace("_", "").replace("ize", "ise").replace("distill", "distil"))
    if kind is None:
        raise InputError(f"recipe: {name!r} is no technique", expected=f"one of {', '.join(known)}")
    shorthand = getattr(kind, "shorthand", None)
    if shorthand is not None:
        values, settings = shorthand(values, settings)
    names = [f.name for f in fields(kind)]
    if len(values) > len(names):
        raise InputError(f"recipe: {text.strip()}", got=f"{len(values)} values", expected=signature(kind))
    for key, value in zip(names, values, strict=False):
        if key in settings:
            raise InputError(f"recipe: {text.strip()}", got=f"{key} twice", expected=signature(kind))
        settings[key] = value
    technique: Technique = made(kind, settings)
    return technique


_MOST = 10_000
_EXAMPLE = "such as prune(ratio=0.5) or quantise(bits=8)"


def _parsed(text: str) -> tuple[str, list[Any], dict[str, Any]]:
    """Name, positional and named values of a call, or of a bare name."""
    if len(text) > _MOST:
        raise InputError("recipe", got=f"{len(text)} characters", expected=f"at most {_MOST}")
    try:
        call = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InputError("recipe", got=repr(text[:60]), expected=f"one call, {_EXAMPLE}") from error
    if isinstance(call, ast.Name):
        return call.id, [], {}
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
        raise InputError("recipe", got=repr(text[:60]), expected=f"one call, {_EXAMPLE}")
    settings: dict[str, Any] = {}
    for keyword in call.keywords:
        if keyword.arg is None:
            raise InputError("recipe", got="**", expected=f"settings by name, {_EXAMPLE}")
        settings[keyword.arg] = _literal(keyword.value, text)
    return call.func.id, [_literal(a, text) for a in call.args], settings


def _literal(node: ast.expr, text: str) -> Any:
    """A literal's value; a bare word (int8, mse) is text."""
    if isinstance(node, ast.Name):
        return node.id
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
        part = ast.get_source_segment(text.strip(), node) or "a value"
        raise InputError("recipe", got=part[:60], expected=f"a literal, {_EXAMPLE}") from error
