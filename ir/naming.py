"""What a node is called in results and messages."""

from __future__ import annotations

import onnx_ir as oir


def describe(node: oir.Node) -> str:
    """The operator's name with its domain, if it is not the default one."""
    return f"{node.domain}.{node.op_type}" if node.domain else node.op_type


def output_name(node: oir.Node) -> str:
    """The first output that has a name: what identifies a node. Empty if there is none."""
    return next((o.name for o in node.outputs if o.name), "")


def node_label(node: oir.Node) -> str:
    """A name for messages: the node's own, else that of its first output."""
    return node.name or output_name(node) or node.op_type
