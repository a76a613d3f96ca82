"""The training contract of a manifest: loss, optimizer and what else a step does, with every setting in plain numbers.

Rules: what a device is to do is written out, defaults included, and signed with the rest of the manifest; a name or a
setting that is not in the tables below is refused, and so is a value out of its bounds. The tables say what the graphs
may be made with; a test holds them against what the builder of the graphs takes.

A loss or an optimizer is asked for as text, settings behind a colon: `huber:delta=0.5`, `adam:beta1=0.8`,
`softmax_cross_entropy:class_weights=1/2/4`; `recipe_named` reads it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from holdfast.bundle.documents import Fields, finite_number
from holdfast.errors import BundleError

SOFTMAX_CROSS_ENTROPY, BINARY_CROSS_ENTROPY = "softmax_cross_entropy", "binary_cross_entropy"
MSE, L1, HUBER = "mse", "l1", "huber"
SGD, MOMENTUM, NESTEROV, ADAM, ADAMW = "sgd", "momentum", "nesterov", "adam", "adamw"
FROZEN, LOCAL, AVERAGED = "frozen", "local", "averaged"  # what becomes of a normalisation's running statistics
BUILT, BROUGHT = "built", "brought"  # where the step graph comes from

MAX_BATCH = 65_536
MAX_ACCUMULATE = 65_536
MAX_LOWERINGS = 4_096  # forms of nodes; the deepest nets have some tens
MAX_CLASSES = 1_048_576  # the largest vocabularies have a quarter of it
BELOW_ONE = math.nextafter(1.0, 0.0)
TINY = 1e-30  # the smallest of what must be positive
HUGE = 1e30

Value = float | tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting: an int, a float or a tuple of floats, as its default is; its bounds are closed."""

    default: Value
    minimum: float
    maximum: float


_DECAY = Setting(0.0, 0.0, HUGE)
_MOMENTUM = {"momentum": Setting(0.9, 0.0, BELOW_ONE), "weight_decay": _DECAY}
_ADAM = {
    "beta1": Setting(0.9, TINY, BELOW_ONE),
    "beta2": Setting(0.999, TINY, BELOW_ONE),
    "epsilon": Setting(1e-8, TINY, HUGE),
}

Table = Mapping[str, Mapping[str, Setting]]
LOSSES: Table = MappingProxyType(
    {
        SOFTMAX_CROSS_ENTROPY: {
            "class_weights": Setting((), 0.0, HUGE),
            "label_smoothing": Setting(0.0, 0.0, BELOW_ONE),
            "ignore_index": Setting(-1, -(2**31), 2**31),
        },
        BINARY_CROSS_ENTROPY: {},
        MSE: {},
        L1: {},
        HUBER: {"delta": Setting(1.0, TINY, HUGE)},
    }
)
OPTIMIZERS: Table = MappingProxyType(
    {
        SGD: {"weight_decay": _DECAY},
        MOMENTUM: _MOMENTUM,
        NESTEROV: _MOMENTUM,
        ADAM: _ADAM,
        ADAMW: {**_ADAM, "weight_decay": Setting(0.01, 0.0, HUGE)},
    }
)


@dataclass(frozen=True, slots=True)
class Recipe:
    """A loss or an optimizer by name, with all of its settings."""

    name: str
    settings: Mapping[str, Value] = field(default_factory=dict)

    def number(self, setting: str) -> float:
        """A setting that is one number."""
        value = self.settings[setting]
        if isinstance(value, tuple):
            raise AssertionError(f"{self.name}:{setting} is a list")
        return value

    def numbers(self, setting: str) -> tuple[float, ...]:
        """A setting that is a list of numbers."""
        value = self.settings[setting]
        if not isinstance(value, tuple):
            raise AssertionError(f"{self.name}:{setting} is one number")
        return value


@dataclass(frozen=True, slots=True)
class Training:
    """How the graphs were built that a bundle learns with, and what a device gives them.

    batch: samples per run of the step graph; a step takes `accumulate` such runs. A round may ask for a smaller batch,
    but not for another `accumulate`: which graphs make a step is what the author had checked and devices check again.
    classes: labels are integers below it; 0: labels are numbers, `label_shape` of them for each sample.
    proximal_mu, gradient_clip: what a round uses that says nothing else; None: the graph knows no such term. 0 = off.
    statistics: running values of normalisations, which a step updates without a gradient: trainable parameters where
    they are averaged, fixed ones where they stay local.
    step_graph: "built" by Holdfast, or "brought" by the author, who made it with another tool.
    lowerings: (form of nodes) to the way in which their gradients are written, where the author's machine measured
    another than the rules take; for readers, as the graphs have it in them.
    """

    loss: Recipe
    optimizer: Recipe
    batch: int
    classes: int = 0
    label_shape: tuple[int, ...] = ()
    accumulate: int = 1
    batch_norm: str = FROZEN
    dropout: bool = False
    proximal_mu: float | None = None
    gradient_clip: float | None = None
    statistics: tuple[str, ...] = ()
    step_graph: str = BUILT
    lowerings: Mapping[str, str] = field(default_factory=dict)


def recipe_named(kind: str, text: str) -> Recipe:
    """Read a name with its settings.

    Args:
        kind: "loss" or "optimizer".
    Raises: BundleError: no such name, an unknown setting, or a value out of its bounds.
    """
    table = LOSSES if kind == "loss" else OPTIMIZERS
    name, _, rest = text.partition(":")
    if name not in table:
        raise BundleError(f"unknown {kind} {name[:100]!r}; expected one of {', '.join(table)}")
    values: dict[str, Value] = {key: setting.default for key, setting in table[name].items()}
    for part in filter(None, rest.split(",")):
        key, _, value = part.partition("=")
        if key not in values:
            raise BundleError(f"unknown setting {key[:100]!r} of {name}; it has {', '.join(values) or 'none'}")
        values[key] = _checked(_parsed(value, table[name][key], f"{name}:{key}"), table[name][key], f"{name}:{key}")
    return Recipe(name, values)


def read_training(value: object, where: str) -> Training:
    """Read the contract out of a manifest. Raises: BundleError: naming the key and what was expected."""
    fields = Fields(value, {each.name for each in dataclasses.fields(Training)}, where)
    training = Training(
        loss=fields.inner("loss", lambda inner, place: _recipe(inner, place, LOSSES)),
        optimizer=fields.inner("optimizer", lambda inner, place: _recipe(inner, place, OPTIMIZERS)),
        batch=fields.integer("batch", minimum=1, maximum=MAX_BATCH),
        classes=fields.integer("classes", maximum=MAX_CLASSES),
        label_shape=fields.each("label_shape", _size, maximum=16),
        accumulate=fields.integer("accumulate", minimum=1, maximum=MAX_ACCUMULATE),
        batch_norm=fields.choice("batch_norm", (FROZEN, LOCAL, AVERAGED)),
        dropout=fields.boolean("dropout"),
        proximal_mu=fields.optional("proximal_mu", _not_negative),
        gradient_clip=fields.optional("gradient_clip", _not_negative),
        statistics=fields.each("statistics", _name, maximum=65_536),
        step_graph=fields.choice("step_graph", (BUILT, BROUGHT)),
        lowerings=fields.inner("lowerings", _lowerings),
    )
    if (training.loss.name == SOFTMAX_CROSS_ENTROPY) != (training.classes > 0):
        raise BundleError(f"{where}.classes is {training.classes}, which the loss {training.loss.name} does not have")
    return training


def _recipe(value: object, where: str, table: Table) -> Recipe:
    fields = Fields(value, {"name", "settings"}, where)
    name = fields.choice("name", tuple(table))
    known = table[name]

    def read(settings: object, place: str) -> dict[str, Value]:
        found = Fields(settings, set(known), place)
        return {key: found.inner(key, _reader(setting)) for key, setting in known.items()}

    return Recipe(name, fields.inner("settings", read))


def _reader(setting: Setting) -> Callable[[object, str], Value]:
    def read(value: object, where: str) -> Value:
        return _checked(value, setting, where)

    return read


def _checked(value: object, setting: Setting, where: str) -> Value:
    """A value of the setting's kind within its bounds."""
    if isinstance(setting.default, tuple):
        if not isinstance(value, (list, tuple)) or len(value) > MAX_CLASSES:
            raise BundleError(f"{where} must be a list of at most {MAX_CLASSES} numbers")
        return tuple(_bounded(finite_number(each, where), setting, where) for each in value)
    if isinstance(setting.default, int):
        if not isinstance(value, int) or isinstance(value, bool):
            raise BundleError(f"{where} must be an integer, got {repr(value)[:100]}")
        return int(_bounded(value, setting, where))
    return _bounded(finite_number(value, where), setting, where)


def _bounded(value: float, setting: Setting, where: str) -> float:
    if not setting.minimum <= value <= setting.maximum:
        raise BundleError(f"{where} must be from {setting.minimum:g} to {setting.maximum:g}, got {value:g}")
    return value


def _parsed(text: str, setting: Setting, where: str) -> object:
    try:
        if isinstance(setting.default, tuple):
            return [float(part) for part in text.split("/")]
        return int(text) if isinstance(setting.default, int) else float(text)
    except ValueError as error:
        raise BundleError(f"{where} must be a number, got {text[:100]!r}") from error


def _lowerings(value: object, where: str) -> dict[str, str]:
    if not isinstance(value, dict) or len(value) > MAX_LOWERINGS:
        raise BundleError(f"{where} must be an object of at most {MAX_LOWERINGS} keys")
    for text in (*value, *value.values()):  # shown to whoever approves the bundle
        if not _name(text, where).isprintable():
            raise BundleError(f"{where} must hold printable characters only")
    return {str(form): str(way) for form, way in value.items()}


def _not_negative(value: object, where: str) -> float:
    number = finite_number(value, where)
    if not 0 <= number <= HUGE:
        raise BundleError(f"{where} must be from 0 to {HUGE:g}, got {number:g}")
    return number


def _size(value: object, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= 2**40:
        raise BundleError(f"{where} must be a size from 1 on, got {repr(value)[:100]}")
    return value


def _name(value: object, where: str) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= 1_024:
        raise BundleError(f"{where} must be a name of 1 to 1024 characters")
    return value
