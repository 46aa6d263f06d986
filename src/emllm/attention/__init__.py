"""Attention over the three views of the log: rotation, layout, and the fused parts."""
