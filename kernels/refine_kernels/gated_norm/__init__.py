"""RMSNorm, alone or with the gate that its result is multiplied by."""

from refine_kernels.gated_norm.interface import GateActivation, gated_norm, rms_norm

__all__ = ["GateActivation", "gated_norm", "rms_norm"]
