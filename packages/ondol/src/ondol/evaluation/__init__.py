"""How good a version is: metrics, intervals, gates, verdicts, plots and reproduction."""
