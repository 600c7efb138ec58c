"""Kernels: pure tensor functions, noise passed in, no checks. `functional` is their checked face."""
