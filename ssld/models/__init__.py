"""Networks: classifiers of timm, the frozen teacher, and what weights on disk say of themselves."""
