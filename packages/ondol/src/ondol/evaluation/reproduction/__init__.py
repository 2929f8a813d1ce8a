"""`ml reproduce`: trains a version again by the code and the packages that it was trained with."""
