"""The engine of a project: what its flows are made of, and the `ml` command."""

import logging

from ondol_serving.printable import PrintableRecord

__version__ = "0.4.0"

# Here, because a worker imports the flows and never the command line: their logs go to Prefect and to files.
logging.setLogRecordFactory(PrintableRecord)
