"""MLflow: runs and registered versions; stored bundles and the champion."""
