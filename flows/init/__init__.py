"""`ml init`: reads the owner's table and writes its contract, a draft to be edited."""

from flows.init.initialize import InitReport, initialize

__all__ = ["InitReport", "initialize"]
