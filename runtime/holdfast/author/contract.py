"""What a step graph has to look like that an author brings along, and the loss it has to differentiate."""

from __future__ import annotations

from dataclasses import dataclass

import onnx
from onnx import TensorProto

from holdfast.author.pack import TrainingPlan, plan_of
from holdfast.autodiff.build import GRADIENT, LOSS, emit_loss, inputs_of
from holdfast.autodiff.externalise import join_weights, split_weights
from holdfast.bundle.manifest import Tensor


@dataclass(frozen=True, slots=True)
class StepContract:
    """Inputs and outputs by name, numpy dtype and shape; `loss_graph` has these inputs and the output `loss`.

    The graph is complete: parameters that do not learn are in it with their values. Standard operators only.
    """

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    loss_graph: bytes


def step_contract(model_bytes: bytes, plan: TrainingPlan) -> StepContract:
    """The contract of a plan. No gradient rule is needed for it.

    Raises: AutodiffError: not a valid model, or a plan that does not fit it.
    """
    made = plan_of(model_bytes, plan)
    weights = split_weights(model_bytes, layout=made.layout).weights
    gradients = [(entry.name + GRADIENT, TensorProto.FLOAT, entry.shape) for entry in made.differentiated]
    return StepContract(
        inputs=tuple(_tensor(*each) for each in inputs_of(made)),
        outputs=tuple(_tensor(*each) for each in [(LOSS, TensorProto.FLOAT, ()), *gradients]),
        loss_graph=join_weights(emit_loss(made), weights, made.layout),
    )


def _tensor(name: str, element_type: int, shape: tuple[int, ...]) -> Tensor:
    return Tensor(name, str(onnx.helper.tensor_dtype_to_np_dtype(element_type)), shape)
