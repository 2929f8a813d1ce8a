"""What the monitor does with a window of the prediction log: read, compare, judge, keep, ask to retrain."""
