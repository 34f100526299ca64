"""Reads a pickle as a program without running it, and says everything in it that is not a known model's.

A pickle is code for a stack machine. An allow-list of names is not enough: a pickle that *calls* an allowed class,
`DetectionModel({"activation": "<python>"})`, runs that text under `torch.load(weights_only=True)` all the same. So this
walks every opcode with `pickletools.genops`, keeps an abstract stack and memo exactly as torch's restricted unpickler
does, and holds these rules:

1. only the opcodes that torch's restricted unpickler knows (no STACK_GLOBAL, INST, OBJ, EXT, NEWOBJ_EX, text ids);
2. a name is allowed by the policy, or it is reported;
3. REDUCE calls only a name that the policy lets be called, with arguments that the policy has looked at;
4. a model class is instantiated only by NEWOBJ with empty arguments, so that no constructor runs;
5. BUILD fills only such instances;
6. a class or function is never kept as data, where a later call could find it;
7. a persistent id is torch's `("storage", <storage type>, key, location, count)`.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

MAX_REPORTED_NAMES = 50


@dataclass(frozen=True, slots=True)
class Global:
    """A name that the pickle looks up, as `module.name`."""

    name: str


@dataclass(frozen=True, slots=True)
class Instance:
    """What a call or an instantiation of `name` gave."""

    name: str


@dataclass(frozen=True, slots=True)
class Items:
    """A tuple. `leak` is the first class or function inside it, at any depth, that may not be kept as data."""

    values: tuple[Any, ...]
    leak: str


class Opaque:
    """Data that no rule looks into: dicts, lists, sets, storages."""


OPAQUE = Opaque()


class Policy(Protocol):
    """Which names a pickle may use, and how."""

    def canonical(self, module: str, name: str) -> str:
        """`module.name` under the name that the rules below use (Python 2 names, old aliases)."""
        ...

    def knows(self, name: str) -> bool:
        """May the name be looked up at all?"""
        ...

    def is_model_class(self, name: str) -> bool:
        """May the name be instantiated without arguments, and filled?"""
        ...

    def is_storage(self, name: str) -> bool:
        """Is the name one of torch's storage types?"""
        ...

    def is_data(self, name: str) -> bool:
        """May the name itself be kept as a value (a dtype)?"""
        ...

    def may_call(self, name: str, arguments: tuple[Any, ...]) -> bool:
        """May the name be called with these abstract arguments?"""
        ...

    def may_fill(self, name: str, state: Any) -> bool:
        """May an instance of the name receive this abstract state?"""
        ...


@dataclass
class ScanResult:
    """`names`: every name looked up and known. `violations`: what broke a rule, in the file's order, each once."""

    names: set[str] = field(default_factory=set)
    violations: list[str] = field(default_factory=list)

    def report(self, violation: str) -> None:
        """Keep a violation once, up to `MAX_REPORTED_NAMES`."""
        if violation not in self.violations and len(self.violations) < MAX_REPORTED_NAMES:
            self.violations.append(violation)


class MalformedPickle(ValueError):
    """The bytes are not a complete pickle, or use their stack as no pickle does."""


def scan_pickle(data: bytes, policy: Policy) -> ScanResult:
    """Walk the first pickle in `data` to its STOP.

    Raises MalformedPickle for bytes that are no pickle. Nothing is imported but what the policy itself looks up.
    """
    machine = _Machine(policy)
    try:
        for opcode, argument, _ in pickletools.genops(data):
            step = machine.steps.get(opcode.name)
            if step is None:
                machine.forbidden(opcode, argument)
            else:
                step(argument)
    except (ValueError, IndexError, KeyError, UnicodeError) as error:
        if not machine.result.violations:
            raise MalformedPickle(f"not a complete pickle: {error}") from error
    return machine.result


class _Machine:
    """The abstract stack machine. Stack, marks and memo behave as in torch's restricted unpickler."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.result = ScanResult()
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self._known: dict[str, Global] = {}
        self.steps: dict[str, Callable[[Any], None]] = self._steps()

    def _steps(self) -> dict[str, Callable[[Any], None]]:
        def push_argument(argument: Any) -> None:
            self.stack.append(argument)

        def push_value(value: Any) -> Callable[[Any], None]:
            return lambda _: self.stack.append(value)

        literals = ("BININT", "BININT1", "BININT2", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING", "LONG1")
        steps: dict[str, Callable[[Any], None]] = dict.fromkeys(literals, push_argument)
        constants = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": Items((), "")}
        steps.update((name, push_value(value)) for name, value in constants.items())
        steps.update((name, push_value(OPAQUE)) for name in ("EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET"))
        steps.update((name, self._get) for name in ("BINGET", "LONG_BINGET"))
        steps.update((name, self._put) for name in ("BINPUT", "LONG_BINPUT"))
        steps.update((f"TUPLE{size}", self._short_tuple(size)) for size in (1, 2, 3))
        steps.update(
            PROTO=lambda _: None,
            STOP=self._stop,
            MARK=self._mark,
            TUPLE=lambda _: self._push_tuple(self._pop_mark()),
            APPEND=lambda _: self._keep([self.stack.pop()]),
            SETITEM=lambda _: self._keep([self.stack.pop(), self.stack.pop()]),
            APPENDS=lambda _: self._keep(self._pop_mark()),
            SETITEMS=lambda _: self._keep(self._pop_mark()),
            GLOBAL=self._global,
            REDUCE=self._reduce,
            NEWOBJ=self._newobj,
            BUILD=self._build,
            BINPERSID=self._persistent_id,
        )
        return steps

    # --- stack and memo

    def _get(self, index: int) -> None:
        self.stack.append(self.memo[index])

    def _put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def _mark(self, _: Any) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def _pop_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def _short_tuple(self, size: int) -> Callable[[Any], None]:
        def step(_: Any) -> None:
            if len(self.stack) < size:
                raise MalformedPickle("a tuple is longer than the stack")
            items = self.stack[-size:]
            del self.stack[-size:]
            self._push_tuple(items)

        return step

    def _push_tuple(self, items: list[Any]) -> None:
        leak = next((name for name in map(self._leak, items) if name), "")
        self.stack.append(Items(tuple(items), leak))

    # --- rule 6

    def _leak(self, value: Any) -> str:
        if isinstance(value, Items):
            return value.leak
        if isinstance(value, Global) and not self.policy.is_data(value.name):
            return value.name
        return ""

    def _keep(self, values: Iterable[Any]) -> None:
        """Values go into the container below them, which stays on the stack."""
        if not self.stack:
            raise MalformedPickle("a value without a container to go into")
        self._refuse_leaks(values)

    def _refuse_leaks(self, values: Iterable[Any]) -> None:
        for value in values:
            leak = self._leak(value)
            if leak:
                self.result.report(f"{leak} (kept as data)")

    # --- names and calls

    def _global(self, argument: str) -> None:
        module, separator, name = argument.partition(" ")
        if not (module and separator and name) or " " in name:
            self.result.report(repr(argument))
            module, name = "", argument
        self.stack.append(self._lookup(module, name))

    def _lookup(self, module: str, name: str) -> Global:
        full_name = self.policy.canonical(module, name)
        known = self._known.get(full_name)
        if known is None:
            known = self._known[full_name] = Global(full_name)
            if self.policy.knows(full_name):
                self.result.names.add(full_name)
            else:
                self.result.report(full_name)
        return known

    def _reduce(self, _: Any) -> None:
        arguments, callee = self.stack.pop(), self.stack.pop()
        if not isinstance(callee, Global):
            self.result.report("a call of something that is not a name")
            callee = Global("?")
        elif not isinstance(arguments, Items):
            self.result.report(f"{callee.name} (called with computed arguments)")
        elif self.policy.knows(callee.name) and not self.policy.may_call(callee.name, arguments.values):
            self.result.report(f"{callee.name} (called)")
        self.stack.append(Instance(callee.name))

    def _newobj(self, _: Any) -> None:
        arguments, callee = self.stack.pop(), self.stack.pop()
        name = callee.name if isinstance(callee, Global) else "something that is not a name"
        if not isinstance(callee, Global) or (self.policy.knows(name) and not self.policy.is_model_class(name)):
            self.result.report(f"{name} (instantiated)")
        if not (isinstance(arguments, Items) and not arguments.values):
            self.result.report(f"{name} (instantiated with arguments)")
        self.stack.append(Instance(name))

    def _build(self, _: Any) -> None:
        state, instance = self.stack.pop(), self.stack[-1]
        name = instance.name if isinstance(instance, Instance) else "something that is not an instance"
        if not isinstance(instance, Instance) or not self.policy.may_fill(name, state):
            self.result.report(f"{name} (filled)")
        self._refuse_leaks([state])

    def _persistent_id(self, _: Any) -> None:
        identity = self.stack.pop()
        values = identity.values if isinstance(identity, Items) else ()
        sound = (
            len(values) >= 2
            and values[0] == "storage"
            and isinstance(values[1], Global)
            and self.policy.is_storage(values[1].name)
            and not any(self._leak(value) for value in values[2:])
        )
        if not sound:
            self.result.report("a persistent id that is not a torch storage")
        self.stack.append(OPAQUE)

    def _stop(self, _: Any) -> None:
        self._refuse_leaks([self.stack.pop()])

    # --- anything else: reported, then followed only to name what else the file wants

    def forbidden(self, opcode: pickletools.OpcodeInfo, argument: Any) -> None:
        """Report an opcode outside of rule 1, and the name that it looks up, if any."""
        name = self._name_wanted_by(opcode.name, argument)
        self.result.report(f"{name} (opcode {opcode.name})" if name else f"opcode {opcode.name}")
        before = list(opcode.stack_before)
        if pickletools.markobject in before:
            self._pop_mark()
            before = before[: before.index(pickletools.markobject)]
        taken = [self.stack.pop() for _ in before]
        if opcode.name == "DUP":
            self.stack += [taken[0], taken[0]]
        elif opcode.name == "MEMOIZE":
            self.memo[len(self.memo)] = taken[0]
            self.stack.append(taken[0])
        elif opcode.name == "STACK_GLOBAL":
            self.stack.append(Global(name))
        else:
            self.stack += [argument if isinstance(argument, str) else OPAQUE for _ in opcode.stack_after]

    def _name_wanted_by(self, opcode_name: str, argument: Any) -> str:
        if opcode_name == "INST":
            return str(argument).replace(" ", ".")
        if opcode_name == "STACK_GLOBAL":
            module, name = self.stack[-2], self.stack[-1]
            if isinstance(module, str) and isinstance(name, str):
                return f"{module}.{name}"
            return "a computed name"
        return ""
