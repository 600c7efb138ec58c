"""Kernels: pure tensor functions that take noise as an argument and check nothing; call them through `functional`."""
