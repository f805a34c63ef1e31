"""Runs as pictures: pages that are one file and need nothing else."""
