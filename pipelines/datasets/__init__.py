"""Importers: a data set's own annotation files and a folder of videos in, labels.csv out."""
