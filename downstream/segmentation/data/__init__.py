"""Images with masks: layouts, classes, crops."""
