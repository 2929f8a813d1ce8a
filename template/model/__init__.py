"""The model: the data's contract, its features and its estimator. Yours to edit."""
