"""Distil, finetune and fix as one command."""
