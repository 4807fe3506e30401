"""Focal loss for bertkit, from a distribution of its own."""

from bertkit_focal.head import FocalHead

__all__ = ["FocalHead"]
