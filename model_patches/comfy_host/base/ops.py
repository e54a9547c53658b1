"""The layer classes that our modules get: ComfyUI's, which cast and load weights, with the faster product on a CPU."""

import comfy.ops
from torch import Tensor

from ...core.linear import linear


class operations(comfy.ops.manual_cast):
    """In the form in which ComfyUI hands layer classes on."""

    class Linear(comfy.ops.manual_cast.Linear):
        def forward_comfy_cast_weights(self, input: Tensor) -> Tensor:
            weight, bias, stream = comfy.ops.cast_bias_weight(self, input, offloadable=True)
            result = linear(input, weight, bias)
            comfy.ops.uncast_bias_weight(self, weight, bias, stream)
            return result
