"""Look for what is likely wrong with a data set: nothing is changed, everything suspicious is listed."""
