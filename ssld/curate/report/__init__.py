"""The page of a curation."""
