"""torch itself: sampling, by name only, because it draws other numbers."""

from .._fingerprint import BUILTIN
from .._target import Target

TARGETS: tuple[Target, ...] = (
    Target(
        name="torch.multinomial",
        qualname="multinomial",
        module="torch",
        hashes=(BUILTIN,),
        replacement="torch_sampling:multinomial",
        guard="torch_sampling:why_not",
        compare="torch_sampling:form_difference",
        equivalence="statistical",
        tolerance=0.0,
        by_name_only=True,
        summary="draws in proportion to weights: without replacement, singly, or of more than 2**24 categories",
        changes="which items are drawn; more than 2**24 categories are drawn from, where torch raises",
        identical="form, dtype and device of the result; errors; every call that torch does faster",
        distribution="the items, in their order; `torch.manual_seed`, or the generator given, decides them",
    ),
)
