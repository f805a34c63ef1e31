"""The method: distillation, and the stages and baselines that share its task."""
