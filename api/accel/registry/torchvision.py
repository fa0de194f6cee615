"""torchvision's data sets of small images (0.26 to 0.29): items under ToTensor, or ToTensor and Normalize."""

from .._target import Target

_CHANGES = "nothing but the memory of the image, which cannot be resized in place"
_IDENTICAL = "every bit, shapes, dtypes, kinds of labels; no random numbers are drawn"


def _items(name: str, file: str, qualname: str, fingerprint: str, data: str) -> Target:
    return Target(
        name=f"torchvision.{name}",
        module=f"torchvision.datasets.{file}",
        qualname=f"{qualname}.__getitem__",
        hashes=(fingerprint,),
        replacement=f"torchvision_items:{name}",
        guard=f"torchvision_items:why_not_{name}",
        equivalence="exact",
        tolerance=0.0,
        summary=f"items of {data} under ToTensor, or ToTensor and Normalize: a look-up of bytes",
        changes=_CHANGES,
        identical=_IDENTICAL,
    )


ITEMS: tuple[Target, ...] = (
    _items("mnist_item", "mnist", "MNIST", "2b32d0cf81177411", "MNIST, FashionMNIST, KMNIST and EMNIST"),
    _items("cifar_item", "cifar", "CIFAR10", "55abb36dd0aed22f", "CIFAR10 and CIFAR100"),
    _items("svhn_item", "svhn", "SVHN", "8c0ec20048fcc081", "SVHN"),
)

TARGETS: tuple[Target, ...] = (
    *ITEMS,
    Target(
        name="torchvision.batch",
        module="torch.utils.data._utils.fetch",
        qualname="_MapDatasetFetcher.fetch",
        hashes=("0000b194a023c836",),
        replacement="torchvision_batches:fetch",
        guard="torchvision_batches:why_not_fetch",
        equivalence="exact",
        tolerance=0.0,
        summary="batches of these data sets, and of subsets of them, in a DataLoader that stacks them itself",
        changes="nothing",
        identical=_IDENTICAL,
    ),
)
