"""From valid rows to a fitted model: the split, the rows of each side, and the fit."""
