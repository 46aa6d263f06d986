"""The seam with transformers: the only room that imports it."""
