"""Pack, index, check, copy and export data sets."""
