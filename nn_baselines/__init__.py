"""Training networks on a distilled set, the fair evaluator and the neural baselines.

Nothing lives here yet; the layer exists so that the direction of imports is fixed from the start.
"""
