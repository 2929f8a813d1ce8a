"""Files, locks, Parquet and remote stores."""
