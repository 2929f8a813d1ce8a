"""What runs leave behind, each written whole or not at all: snapshots, quarantine, bundles, the champion."""
