"""Training networks on a distilled set, the fair evaluator, and the neural baselines (DC, DSA, MTT)."""
