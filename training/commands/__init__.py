"""The commands that training adds to `palisade`: one line here and one function in a module of this folder.

This module is imported to list the commands, so it imports no torch.
"""

from __future__ import annotations

from gateway.cli.plugins import Plugin

COMMANDS = {
    "train": Plugin("training.commands.train:train", "Train a network by a recipe."),
    "weights": Plugin("training.commands.weights:weights", "Keep a network as a file that training can start from."),
    "build": Plugin("training.commands.build:build", "Build a bundle from data, in one command."),
    "wrap": Plugin("training.commands.wrap:wrap", "Defend a trained network as it is: calibrate and export."),
    "harden": Plugin("training.commands.wrap:harden", "Train a network and a companion on an image folder."),
    "companion": Plugin("training.commands.companion:companion", "Train a companion for a model that stays as it is."),
    "guard calibrate": Plugin("training.commands.guard:calibrate", "Calibrate for the model of another server."),
    "calibrate": Plugin("training.commands.calibrate:calibrate", "Calibrate a bundle where it will be served."),
    "recalibrate": Plugin("training.commands.recalibrate:recalibrate", "Calibrate a bundle on reviewed traffic."),
    "pool": Plugin("training.commands.pool:pool", "Fit a pool of all networks that answer together."),
    "votes": Plugin("training.commands.votes:votes", "Calibrate masks that vote on verdicts, against small patches."),
    "small-field": Plugin(
        "training.commands.small_field:small_field", "Give a bundle a network that certifies in one forward pass."
    ),
    "kinds": Plugin("training.commands.kinds:kinds", "Let a bundle tell unfamiliar images from attacked ones."),
    "evaluate": Plugin("training.commands.evaluate:evaluate", "Attack the system as it is served and write its card."),
    "verify": Plugin("training.commands.evaluate:verify", "Compute the headline figures again, against their bounds."),
    "card": Plugin("training.commands.card:app", "Register, check and export robustness cards."),
    "analyse": Plugin("training.commands.analyse:app", "Analyse networks under attack: layers, neurons, explanations."),
    "data": Plugin("training.commands.data:app", "Convert data sets."),
}
