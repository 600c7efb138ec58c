"""Tolerances by the dtype of a result, compared with a float64 oracle on the same inputs."""

import torch

# dtype: (relative, absolute). Half precision: two units in the last place, for a result computed in float32 and
# rounded once. float32: a hundred units, the error of sums of exponentials at a temperature of 0.01.
TOLERANCES = {
    torch.float64: (1e-9, 1e-11),
    torch.float32: (1e-5, 1e-5),
    torch.float16: (1e-3, 1e-6),
    torch.bfloat16: (8e-3, 1e-6),
}
DTYPES = tuple(TOLERANCES)
LOW_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def assert_close(actual, expected, factor=1.0):
    """`actual` within its dtype's tolerance of `expected`, the tolerance `factor` times as wide."""
    rtol, atol = TOLERANCES[actual.dtype]
    expected = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(
        actual.detach().double(), expected.detach(), rtol=factor * rtol, atol=factor * atol, check_dtype=False
    )
