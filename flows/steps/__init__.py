"""The steps of the flows, a module for each flow."""
