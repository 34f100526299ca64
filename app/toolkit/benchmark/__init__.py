"""How fast a model is in each way of running it here, with what is needed to believe the figures."""
