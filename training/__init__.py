"""Palisade's offline half: harden a classifier, calibrate its defence, attack it and export it as a bundle."""
