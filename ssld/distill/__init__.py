"""The method: distillation, and the stages and baselines that share its task."""

from ssld.cli.python import callable_module

callable_module(__name__)
