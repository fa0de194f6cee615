"""The networks of the field by their names: one, or many at once with stacked weights; drawn by seed, kept in files."""

from .draws import build_network, draw_networks
from .files import load_network, save_network
from .network import Network
from .spec import NETWORKS, NetworkSpec, network_spec
from .stack import NetworkStack, apply_stack

__all__ = [
    "NETWORKS",
    "Network",
    "NetworkSpec",
    "NetworkStack",
    "apply_stack",
    "build_network",
    "draw_networks",
    "load_network",
    "network_spec",
    "save_network",
]
