"""Tests; what they share is in the files whose names do not begin with test_."""
