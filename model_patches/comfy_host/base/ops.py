"""The layer classes for our modules: ComfyUI's, which cast and load weights, with a faster linear layer on a CPU."""

import comfy.ops
from torch import Tensor

from ...core.linear import linear


class operations(comfy.ops.manual_cast):
    """A namespace of layer classes, in ComfyUI's form."""

    class Linear(comfy.ops.manual_cast.Linear):
        product = staticmethod(linear)

        def forward_comfy_cast_weights(self, input: Tensor) -> Tensor:
            weight, bias, stream = comfy.ops.cast_bias_weight(self, input, offloadable=True)
            result = self.product(input, weight, bias)
            comfy.ops.uncast_bias_weight(self, weight, bias, stream)
            return result
