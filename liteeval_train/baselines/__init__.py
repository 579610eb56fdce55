"""The methods that LiteEval is compared with, one file each."""
