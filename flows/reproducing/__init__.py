"""Making a version again from its record: `ml reproduce` checks out, installs, retrains and compares."""
