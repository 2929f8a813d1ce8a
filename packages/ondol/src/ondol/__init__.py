"""The engine of a project: the steps of its flows, and the `ml` command."""

import logging

from ondol_serving.names import PrintableRecord

__version__ = "0.4.1"

# Here, because a worker imports the flows and not the command line: their logs go to Prefect and to files.
logging.setLogRecordFactory(PrintableRecord)
