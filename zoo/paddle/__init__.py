"""Weights of the reference implementation (PaddleClas), read without Paddle."""
