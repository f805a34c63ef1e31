"""Images with boxes: formats, checks, crops."""
