"""Join: which operators of the file each kernel of the runtime computes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from trimtab.profile.network import MARK, QUANTISING, Network
from trimtab.run.kernels import Kernel

_LAYOUT = ("Transpose", "ReorderInput", "ReorderOutput")
"""What ONNX Runtime adds to change the order of channels in memory."""


@dataclass(frozen=True)
class Wiring:
    """Who makes and who reads each value, by position, and which operators depend on constants alone."""

    makers: Mapping[str, int]
    readers: Mapping[str, list[int]]
    constant: frozenset[int]


@dataclass(frozen=True)
class Group:
    """The operators that kernels compute together.

    Args:
        kernels: mostly one; none for operators that the runtime did away with.
        members: positions in the network's operators, in order; empty for a conversion that the runtime added.
        reads: bytes of each value that comes from outside, parameters among them.
        writes: bytes of each value that others read, or that the network returns.
    """

    kernels: tuple[Kernel, ...]
    members: tuple[int, ...]
    reads: Mapping[str, int]
    writes: Mapping[str, int]

    @property
    def moved(self) -> int:
        """All bytes read and written, each value once."""
        return sum(self.reads.values()) + sum(self.writes.values())


def join(network: Network, kernels: Sequence[Kernel]) -> tuple[Group, ...]:
    """One group for each operator, or chain of fused operators, that the runtime executes, in the runtime's order.

    A kernel owns the operators that the runtime names for it. An operator that no kernel owns was fused: one that
    multiplies goes to the kernel of what reads it, another one to the kernel of what it reads. Operators of
    constants (a weight's dequantisation) were computed while loading and stand with their reader.

    Args:
        network: as read from the file.
        kernels: timed on the network's marked model.
    """
    wiring = wiring_of(network)
    owner = _owned(network, kernels)
    ran = frozenset(owner)
    _absorb(network, kernels, owner, wiring)
    _spread(network, owner, wiring)
    groups: dict[int, list[int]] = {}
    for position in sorted(owner):
        groups.setdefault(owner[position], []).append(position)
    by_first: dict[int, list[Kernel]] = {}
    for index, kernel in enumerate(kernels):
        by_first.setdefault(_representative(network, kernels, owner, index), []).append(kernel)
    return tuple(
        Group(tuple(together), tuple(groups.get(first, ())), *_border(network, groups.get(first, ()), ran, wiring))
        for first, together in by_first.items()
    )


def peak_memory(network: Network, groups: Sequence[Group]) -> int:
    """Largest sum of bytes of the values alive while one group runs, in the order that the runtime runs them.

    An input lives from the start, an output to the end, everything else from its maker to its last reader. What fused
    operators hand to each other is never stored; constants and what a kernel needs inside are not counted.
    """
    last: dict[str, int] = {}
    first = dict.fromkeys(network.inputs, 0)
    for step, group in enumerate(groups):
        last.update(dict.fromkeys(group.reads, step))
        for name in group.writes:
            first.setdefault(name, step)
    last.update(dict.fromkeys(network.outputs, len(groups) - 1))
    alive = [0] * (len(groups) + 1)
    for name, start in first.items():
        alive[start] += network.bytes_of(name)
        alive[max(last.get(name, start), start) + 1] -= network.bytes_of(name)
    return max(accumulate(alive), default=0)


def covered(network: Network, kernel: Kernel) -> tuple[int, ...]:
    """Positions of the operators that the runtime names for a kernel; none for a change of layout."""
    found = dict.fromkeys(int(m[1]) for name in kernel.covers for m in MARK.finditer(name))
    positions = tuple(i for i in found if i < len(network.ops))
    if kernel.kind in _LAYOUT and all(network.ops[i].kind != kernel.kind for i in positions):
        return ()
    return positions


def _owned(network: Network, kernels: Sequence[Kernel]) -> dict[int, int]:
    """The kernel of each operator that a runtime names; several kernels of one operator count as the first of them."""
    owner: dict[int, int] = {}
    for index, kernel in enumerate(kernels):
        for position in covered(network, kernel):
            owner.setdefault(position, index)
    return owner


def _representative(network: Network, kernels: Sequence[Kernel], owner: dict[int, int], index: int) -> int:
    """The kernel that a kernel's time is counted with: itself, or the first one of the same operator."""
    positions = covered(network, kernels[index])
    if positions and all(owner[i] != index for i in positions):
        return owner[positions[0]]
    return index


def _absorb(network: Network, kernels: Sequence[Kernel], owner: dict[int, int], wiring: Wiring) -> None:
    """A kernel of another kind than its last operator stands for the whole pattern that ends there.

    So a `Gelu` named after a multiplication takes the error function before it, and a `Conv` named after an
    activation takes its convolution.
    """
    for index, kernel in enumerate(kernels):
        for position in covered(network, kernel):
            op = network.ops[position]
            if owner[position] == index and op.macs == 0 and op.kind != kernel.kind:
                _upstream(network, wiring, owner, position)


def _upstream(network: Network, wiring: Wiring, owner: dict[int, int], start: int) -> None:
    waiting = [start]
    while waiting:
        position = waiting.pop()
        op = network.ops[position]
        if op.macs or (op.kind == "DequantizeLinear" and position != start):
            continue  # the pattern ends at a product, and where the previous one gave its result
        for name in op.reads:
            maker = wiring.makers.get(name)
            if maker is not None and maker not in owner:
                owner[maker] = owner[start]
                waiting.append(maker)


def _spread(network: Network, owner: dict[int, int], wiring: Wiring) -> None:
    """Give what is left to the kernel of a neighbour, until nothing changes."""
    changed = True
    while changed:
        changed = False
        for position in range(len(network.ops)):
            if position not in owner:
                neighbour = _neighbour(network, owner, wiring, position)
                if neighbour is not None:
                    owner[position] = owner[neighbour]
                    changed = True


def _neighbour(network: Network, owner: dict[int, int], wiring: Wiring, position: int) -> int | None:
    """The operator in whose kernel this one was fused; None as long as that one has no kernel itself."""
    op = network.ops[position]
    after = [i for name in op.makes for i in wiring.readers.get(name, ()) if i in owner]
    before = [wiring.makers[n] for n in op.reads if n in wiring.makers and wiring.makers[n] not in wiring.constant]
    if op.macs or position in wiring.constant or op.kind == "DequantizeLinear" or not before:
        return after[0] if after else None
    owned = [i for i in before if i in owner]
    return max(owned) if owned else None


def wiring_of(network: Network) -> Wiring:
    """Who makes and reads what in a network."""
    makers: dict[str, int] = {}
    readers: dict[str, list[int]] = {}
    known, constant = set(network.constants), set()
    for position, op in enumerate(network.ops):
        for name in op.reads:
            readers.setdefault(name, []).append(position)
        makers.update(dict.fromkeys(op.makes, position))
        if all(name in known for name in op.reads):
            known.update(op.makes)
            constant.add(position)
    return Wiring(makers, readers, frozenset(constant))


def _border(
    network: Network, members: Sequence[int], ran: frozenset[int], wiring: Wiring
) -> tuple[dict[str, int], dict[str, int]]:
    """Bytes that come into a group and that leave it, by value.

    What crosses through a dequantising operator that never ran is read as the integers that it takes.
    """
    inside = set(members)
    read: dict[str, int] = {}
    written: dict[str, int] = {}
    for position in members:
        op = network.ops[position]
        if position in wiring.constant and op.kind not in QUANTISING:
            continue  # computed while loading
        for name in op.reads:
            source = _stored(network, ran, wiring, name)
            if wiring.makers.get(source) not in inside:
                read[source] = network.bytes_of(source)
        if op.kind.startswith("Gather"):  # the rows that are read, not the whole table
            read[op.reads[0]] = min(network.bytes_of(op.reads[0]), sum(network.bytes_of(n) for n in op.makes))
        if op.kind == "DequantizeLinear" and position not in ran:
            continue  # its floats are never in memory
        for name in op.makes:
            if name in network.outputs or any(i not in inside for i in wiring.readers.get(name, ())):
                written[name] = network.bytes_of(name)
    return read, written


def _stored(network: Network, ran: frozenset[int], wiring: Wiring, name: str) -> str:
    """The value that lies in memory where an operator reads `name`."""
    maker = wiring.makers.get(name)
    if maker is not None and maker not in ran and network.ops[maker].kind == "DequantizeLinear":
        return network.ops[maker].reads[0]
    return name
