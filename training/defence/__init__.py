"""The defence as torch modules: the same code is evaluated, attacked (it is differentiable) and exported."""
