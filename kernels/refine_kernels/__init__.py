"""Operations of fast-weight language models: one folder each, with its maths in a README.

This package knows nothing of training. It depends on torch alone; Triton and kernels of other
packages are imported when a kernel runs.
"""
