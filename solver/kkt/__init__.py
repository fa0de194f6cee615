"""The KKT conditions of trained models: residuals, duals, support vectors, and closed forms for linear models."""

from .duals import FittedDuals, fit_duals
from .linear import (
    KKTResiduals,
    logistic_duals,
    logistic_residuals,
    ridge_duals,
    ridge_residual,
    svm_residuals,
)
from .operators import directional_derivatives, gradient_norms, per_sample_gradients, weighted_gradient
from .prior import mean_norm, total_variation
from .stationarity import distance, primal_loss, relative_residual, stationarity_residual
from .support_vectors import SupportVectors, deep_support_vectors
from .trained import TrainedModel, cross_entropy, trained_model

__all__ = [
    "FittedDuals",
    "KKTResiduals",
    "SupportVectors",
    "TrainedModel",
    "cross_entropy",
    "deep_support_vectors",
    "directional_derivatives",
    "distance",
    "fit_duals",
    "gradient_norms",
    "logistic_duals",
    "logistic_residuals",
    "mean_norm",
    "per_sample_gradients",
    "primal_loss",
    "relative_residual",
    "ridge_duals",
    "ridge_residual",
    "stationarity_residual",
    "svm_residuals",
    "total_variation",
    "trained_model",
    "weighted_gradient",
]
