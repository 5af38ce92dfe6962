"""``silu(gate) * up``, what lies between the products of an MLP."""

from refine_kernels.swiglu.interface import swiglu

__all__ = ["swiglu"]
