"""A model loaded into ONNX Runtime, with its inputs checked before it sees them.

Rules: defaults for the edge (one thread, no spinning); a request is refused with what was expected and what came,
before any memory is taken for it; a loaded session never changes. A model file is an untrusted program:
`load_session` is for digests that passed `trial.run_trial`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from holdfast.errors import DeadlineError, InferenceError, InvalidTensorError, ModelError
from holdfast.inference.bfloat16 import from_value, to_value
from holdfast.inference.onnx_wire import external_locations
from holdfast.inference.tensors import BFLOAT16_NAME, STRING, Array, TensorSpec, dtype_name, numpy_dtype, shape_text
from holdfast.inference.traits import UNMEASURED, Traits

MAX_MODEL_BYTES = 4 * 1024**3  # 4 GiB: above what an edge node holds in memory; protobuf itself stops at 2 GiB
MAX_REASON_CHARS = 300  # of ONNX Runtime's own words in a message of ours
PROVIDERS = ("CPUExecutionProvider",)

# ONNX Runtime's exceptions share no base class of their own; its binding raises the last three for some inputs.
ORT_ERRORS: tuple[type[Exception], ...] = (
    ort_errors.EPFail,
    ort_errors.EngineError,
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.ModelLoaded,
    ort_errors.NoModel,
    ort_errors.NoSuchFile,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
    RuntimeError,
    ValueError,
    MemoryError,
)
_DTYPE_OF_ONNX = {
    "tensor(bool)": "bool",
    "tensor(uint8)": "uint8",
    "tensor(uint16)": "uint16",
    "tensor(uint32)": "uint32",
    "tensor(uint64)": "uint64",
    "tensor(int8)": "int8",
    "tensor(int16)": "int16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(float16)": "float16",
    "tensor(bfloat16)": BFLOAT16_NAME,
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(string)": STRING,
}
_numbers = itertools.count(1)


@dataclass(frozen=True)
class ModelSource:
    """The bytes of an ONNX file and of its external data files, by the location the model names them with.

    Without slots, so that the digest of what may be gigabytes is made once.
    """

    model: bytes
    external: Mapping[str, bytes] = field(default_factory=dict)

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) over the model and, by name, its external files."""
        import hashlib  # not at the top: it brings 4 MB of OpenSSL, and a bare file is served without a digest

        total = hashlib.sha256(hashlib.sha256(self.model).digest())
        for name in sorted(self.external):
            total.update(hashlib.sha256(name.encode()).digest())
            total.update(hashlib.sha256(self.external[name]).digest())
        return total.hexdigest()

    @property
    def size_bytes(self) -> int:
        return len(self.model) + sum(map(len, self.external.values()))

    @classmethod
    def from_file(cls, path: Path) -> ModelSource:
        """Read a model and the external data files it names, which must lie in the same folder.

        Raises:
            ModelError: a file is missing, not readable, too large, or named outside the model's folder.
        """
        model = _read_bounded(path, MAX_MODEL_BYTES)
        external: dict[str, bytes] = {}
        left = MAX_MODEL_BYTES - len(model)
        for location in external_locations(model):
            parts = Path(location).parts
            if not parts or Path(location).is_absolute() or ".." in parts:
                raise ModelError(f"{path} names external data outside its own folder: {location!r}")
            external[location] = _read_bounded(path.parent / location, left)
            left -= len(external[location])
        return cls(model, external)


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """How a session uses the processor. Spinning burns 6 to 17 times the CPU at low request rates.

    shared_threads: use the process's pool (`share_threads`) instead of threads of its own.
    optimise: False for a graph that ONNX Runtime has optimised before (`graph_cache`).
    """

    intra_op_threads: int = 1
    spinning: bool = False
    shared_threads: bool = False
    optimise: bool = True


class RunStop:
    """Ends one run from another thread, at the next operator that it reaches."""

    __slots__ = ("options",)

    def __init__(self) -> None:
        self.options = onnxruntime.RunOptions()

    def set(self) -> None:
        self.options.terminate = True

    @property
    def is_set(self) -> bool:
        return bool(self.options.terminate)


class ModelSession:
    """A loaded model. Thread-safe: several threads may run it at once.

    `number`: no other session of this process has or had it; for notes about a session that must not keep it alive.
    """

    def __init__(
        self, session: onnxruntime.InferenceSession, traits: Traits = UNMEASURED, labels: tuple[str, ...] = ()
    ) -> None:
        self._session = session
        # ONNX Runtime's own binding: the Python around it checks again what was checked, 3 us of a tiny model's 8, and
        # when a provider fails it writes to our output and opens the session anew
        self._run = getattr(session, "_sess", session).run
        self.number = next(_numbers)
        self.traits = traits
        self.labels = labels  # of classes, by index; a class beyond them has none
        self.inputs = tuple(_spec(node) for node in session.get_inputs())
        self.outputs = tuple(_spec(node) for node in session.get_outputs())
        self._input_of = {spec.name: spec for spec in self.inputs}
        # numpy spells a dtype's name anew each time: comparing dtypes keeps 2 us out of every request
        self._dtype_of = {spec.name: numpy_dtype(spec.dtype) for spec in self.inputs}
        self._output_of = {spec.name: spec for spec in self.outputs}
        self._has_bfloat16 = any(spec.dtype == BFLOAT16_NAME for spec in (*self.inputs, *self.outputs))
        self._shareable = self._shapes_that_share()

    def measured(self, traits: Traits) -> ModelSession:
        """The same loaded model, with what was measured of it."""
        return ModelSession(self._session, traits, self.labels)

    def labelled(self, labels: tuple[str, ...]) -> ModelSession:
        """The same loaded model, with the names of its classes."""
        return ModelSession(self._session, self.traits, labels)

    def shared_rows(self, inputs: Mapping[str, Array]) -> int:
        """The rows of inputs that may share a run with others and need no further check; 0 for all other inputs."""
        shareable = self._shareable
        if len(inputs) != len(shareable):
            return 0
        rows = 0
        for name, dtype, rows_of_shape in shareable:
            array = inputs.get(name)
            if array is None or array.dtype != dtype:
                return 0
            found = rows_of_shape.get(array.shape, 0)
            if found == 0 or (rows != found and rows != 0):
                return 0
            rows = found
        return rows

    def shares(self, inputs: Sequence[tuple[str, np.dtype[np.generic], tuple[int, ...]]]) -> bool:
        """Whether requests with these inputs may share a run: (name, dtype, shape of a row) of each."""
        given = {name: (dtype, row_shape) for name, dtype, row_shape in inputs}
        if not self._shareable or len(given) != len(inputs) or len(given) != len(self._shareable):
            return False
        for name, dtype, rows_of_shape in self._shareable:
            have, row_shape = given.get(name, (None, ()))
            if have != dtype or (1, *row_shape) not in rows_of_shape:
                return False
        return True

    def has_outputs(self, names: tuple[str, ...]) -> bool:
        """Whether these are different outputs of the model."""
        return len(set(names)) == len(names) and self._output_of.keys() >= set(names)

    def _shapes_that_share(self) -> tuple[tuple[str, np.dtype[np.generic], dict[tuple[int, ...], int]], ...]:
        """Per input, every shape up to the largest probed batch: a look-up costs less than a comparison."""
        mixing = self.traits.mixing
        if not mixing.is_allowed:
            return ()
        return tuple(
            (
                spec.name,
                self._dtype_of[spec.name],
                {(rows, *(size or 0 for size in spec.shape[1:])): rows for rows in range(1, mixing.buckets[-1] + 1)},
            )
            for spec in self.inputs
        )

    def run(
        self, inputs: Mapping[str, Array], outputs: tuple[str, ...] = (), stop: RunStop | None = None
    ) -> dict[str, Array]:
        """Run the model once.

        Args:
            inputs: one array per declared input; not modified, not kept.
            outputs: names of the outputs wanted, in order; empty = all.
            stop: ends the run when somebody sets it.
        Returns: new arrays, C-contiguous; strings as object arrays of bytes.
        Raises:
            InvalidTensorError: a name, dtype or shape does not fit what the model declares.
            InferenceError: the model itself failed on these inputs.
            DeadlineError: `stop` was set.
        """
        self.check(inputs, outputs)
        return self.run_checked(inputs, outputs, stop)

    def run_checked(
        self, inputs: Mapping[str, Array], outputs: tuple[str, ...] = (), stop: RunStop | None = None
    ) -> dict[str, Array]:
        """`run` without the check: for inputs that passed it, or were joined from such."""
        wanted = outputs or tuple(self._output_of)
        feed = {name: _to_runtime(name, array) for name, array in inputs.items()}
        try:
            options = None if stop is None else stop.options
            if self._has_bfloat16:
                values = {name: to_value(array) for name, array in feed.items()}
                results = [from_value(v) for v in self._session.run_with_ort_values(list(wanted), values, options)]
            else:
                results = self._run(list(wanted), feed, options)
        except ORT_ERRORS as error:
            if stop is not None and stop.is_set:
                raise DeadlineError("the run was ended: nobody waits for its answer any more") from error
            raise InferenceError(f"the model failed on these inputs: {ort_reason(error)}") from error
        return {name: _from_runtime(value) for name, value in zip(wanted, results, strict=True)}

    def check(self, inputs: Mapping[str, Array], outputs: tuple[str, ...] = ()) -> None:
        """Compare names, dtypes and shapes with what the model declares.

        Raises:
            InvalidTensorError: naming the tensor, what was expected and what came.
        """
        if inputs.keys() != self._input_of.keys():
            expected, got = ", ".join(self._input_of), ", ".join(inputs) or "none"
            raise InvalidTensorError(f"wrong inputs: expected {expected}; got {got}")
        for name, array in inputs.items():
            spec = self._input_of[name]
            if array.dtype != self._dtype_of[name]:
                raise InvalidTensorError(f"input '{name}': expected {spec.dtype}, got {dtype_name(array)}")
            if not spec.accepts_shape(array.shape):
                expected, got = shape_text(spec.shape), shape_text(array.shape)
                raise InvalidTensorError(f"input '{name}': expected shape {expected}, got {got}")
        for name in outputs:
            if name not in self._output_of:
                raise InvalidTensorError(f"unknown output '{name}'; the model has {', '.join(self._output_of)}")
        if len(set(outputs)) != len(outputs):
            raise InvalidTensorError("an output is asked for twice")


def load_session(source: ModelSource, options: SessionOptions | None = None) -> ModelSession:
    """Load a model into ONNX Runtime. Slow, and not on the serving loop's thread.

    Raises:
        ModelError: not an ONNX model, or one with inputs or outputs that cannot be served.
    """
    return ModelSession(_open(source, _settings(source, options or SessionOptions())))


def optimise(source: ModelSource, options: SessionOptions, to: Path) -> ModelSession:
    """Load a model and write its graph, as ONNX Runtime optimised it for this processor, to a new file.

    Weights stand in the file, also those that were external. Load it with `SessionOptions.optimise` False.

    Raises:
        ModelError: not a model that can be loaded, or the file cannot be written.
    """
    settings = _settings(source, options)
    settings.optimized_model_filepath = str(to)
    return ModelSession(_open(source, settings))


def share_threads(intra_op_threads: int) -> None:
    """Make one pool of threads for all sessions with `shared_threads`. Once per process, before the first session.

    Worth it only where sessions use more than one thread: those of one thread use their caller's. From then on every
    session needs `shared_threads`; ONNX Runtime refuses others.
    """
    onnxruntime.set_global_thread_pool_sizes(intra_op_threads, 1)


def _settings(source: ModelSource, options: SessionOptions) -> onnxruntime.SessionOptions:
    settings = onnxruntime.SessionOptions()
    if options.shared_threads:
        settings.use_per_session_threads = False
    else:
        settings.intra_op_num_threads = options.intra_op_threads
        settings.inter_op_num_threads = 1
    if not options.optimise:
        settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    settings.log_severity_level = 4  # fatal only: what goes wrong is in the exception, and logs hold no model's words
    spinning = "1" if options.spinning else "0"
    settings.add_session_config_entry("session.intra_op.allow_spinning", spinning)
    settings.add_session_config_entry("session.inter_op.allow_spinning", spinning)
    if source.external:
        names = list(source.external)
        blobs = [source.external[name] for name in names]
        settings.add_external_initializers_from_files_in_memory(names, blobs, [len(blob) for blob in blobs])
    return settings


def _open(source: ModelSource, settings: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    try:
        return onnxruntime.InferenceSession(source.model, settings, providers=list(PROVIDERS))
    except ORT_ERRORS as error:
        raise ModelError(f"not a model that ONNX Runtime can load: {ort_reason(error)}") from error


def ort_reason(error: BaseException) -> str:
    """ONNX Runtime's own words, on one line and bounded."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text.removeprefix("[ONNXRuntimeError] : ")[:MAX_REASON_CHARS]


def _spec(node: onnxruntime.NodeArg) -> TensorSpec:
    dtype = _DTYPE_OF_ONNX.get(node.type)
    if dtype is None:
        known = ", ".join(sorted(_DTYPE_OF_ONNX))
        raise ModelError(f"'{node.name}' has type {node.type}, which cannot be served; use one of {known}")
    shape = tuple(size if isinstance(size, int) and size >= 0 else None for size in node.shape)
    return TensorSpec(str(node.name), dtype, shape)


def _to_runtime(name: str, array: Array) -> Array:
    """The array as ONNX Runtime wants it: aligned and contiguous; strings as `str`."""
    if array.dtype != np.object_:
        fits = array.flags.c_contiguous and array.flags.aligned
        return array if fits else np.require(array, requirements=["C", "A"])
    try:
        texts = [bytes(item).decode("utf-8") for item in array.ravel().tolist()]
    except UnicodeDecodeError as error:
        raise InvalidTensorError(f"input '{name}': a string element is not UTF-8; ONNX strings are text") from error
    return _object_array(texts, array.shape)


def _from_runtime(value: Array) -> Array:
    if value.dtype != np.object_:
        return value
    return _object_array([str(item).encode("utf-8") for item in value.ravel().tolist()], value.shape)


def _object_array(items: list[str] | list[bytes], shape: tuple[int, ...]) -> Array:
    array = np.empty(len(items), dtype=np.object_)
    array[:] = items
    return array.reshape(shape)


def _read_bounded(path: Path, limit_bytes: int) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(limit_bytes + 1)
    except OSError as error:
        raise ModelError(f"model file {path} cannot be read: {error.strerror or error}") from error
    if len(data) > limit_bytes:
        raise ModelError(f"model file {path} is larger than the {limit_bytes} bytes left for this model")
    return data
