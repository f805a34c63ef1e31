"""Scale-Equivalent Distillation: a detector learns from labeled and unlabeled images at once."""
