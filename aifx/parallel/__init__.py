"""Where arrays live: the mesh of devices, the rules from logical axes to it, and what programs know of both."""

from aifx.parallel.context import ForwardContext
from aifx.parallel.layout import DATA_AXIS, Layout, Rules, abstract_layout, local_layout

__all__ = ["DATA_AXIS", "ForwardContext", "Layout", "Rules", "abstract_layout", "local_layout"]
