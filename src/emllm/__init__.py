"""Episodic memory for any rotary-position causal language model of Hugging Face."""

__version__ = "0.1.0"
