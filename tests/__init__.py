"""Tests; the parts they share are in reference.py."""
