"""The BentoML service: loads the champion's bundle and answers predictions. Start it with `ml serve`."""
