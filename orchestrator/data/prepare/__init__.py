"""Pack, import, index, check, copy and export data sets."""
