"""Data on disk: the VOC palette, the sample set, and tools that prepare public data sets for the scripts."""
