"""The flows and commands of the project: ingest, validate, train, evaluate, deploy, predict, monitor."""

import logging

from service.printable import PrintableRecord

# Here, since a worker imports the flows and never the command line: their logs go to Prefect and to files.
logging.setLogRecordFactory(PrintableRecord)
