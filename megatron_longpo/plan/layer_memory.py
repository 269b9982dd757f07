"""What a rank needs at the moments of a backward pass that may be the worst: of the head, of an MLP, of attention.

Formulas over the sizes of step_shape.py, with the reason beside each. All figures are bytes by part (memory.py). The
layer is the last, whose backward pass comes first: what all other layers keep is still there.
"""

from megatron_longpo.model.chunk_size import CHUNK_BYTES
from megatron_longpo.model.layout import TreeLayout
from megatron_longpo.plan.step_shape import StepShape

Parts = dict[str, int]


def kept_by_layer(shape: StepShape) -> Parts:
    """What the forward pass leaves of one layer for its backward pass."""
    sizes = shape.tensors
    if shape.keeps_layers:
        return {"layer inputs": sizes.x} | _of_layer(shape)
    kept = {"layer inputs": sizes.x}
    return kept | ({"kept attention": sizes.q + sizes.lse} if shape.recompute == "keep-attention" else {})


def head_backward(shape: StepShape) -> Parts:
    """The log-prob head (model/logprob.py), before any layer's backward pass."""
    sizes = shape.tensors
    rows = min(max(1, CHUNK_BYTES // (4 * shape.vocab)), shape.layout.length)
    # Logits in fp32, beside them their gradient where it is of another type, and the chunk's hidden states.
    chunk = rows * shape.vocab * (4 + (shape.element_size if shape.element_size < 4 else 0))
    chunk += rows * shape.options["hidden_size"] * shape.element_size
    if not shape.is_fused:  # a part of the weight's gradient, before it is added
        chunk += min(CHUNK_BYTES, shape.vocab * shape.options["hidden_size"] * 4)
    return {
        "residual stream": 2 * sizes.x + _unfused(shape, sizes.x),  # the last layer's output and its norm
        # The gradient of the hidden states; then, when the last chunk has gone, a placeholder of the weight's gradient,
        # which DDP's hook wants to see.
        "log-prob head": sizes.gathered + max(chunk, shape.embedding),
        "communication": sizes.gathered if shape.gathers_tokens else 0,  # the hidden states of all ranks
    }


def embedding_backward(shape: StepShape) -> Parts:
    """The embedding, after all layers: its gradient, to which a tied head's placeholder is added."""
    return {"embedding": shape.embedding * (2 if shape.is_tied else 1)}


def mlp_backward(shape: StepShape) -> Parts:
    """The MLP."""
    sizes, parts = shape.tensors, _recomputed(shape)
    weight = shape.ffn * shape.options["hidden_size"] * shape.element_size
    parts["MLP"] += max(
        # fc2: gradient of its input, and of its weight, in the weights' type before it is added to the fp32 one.
        sizes.f + weight,
        # SwiGLU: the product has gone; gradients of the product and of gate and up.
        2 * sizes.f,
        # fc1: gate and up have gone too; gradients of its output, its input and its weight.
        sizes.gathered + 2 * weight - sizes.f,
    )
    parts["residual stream"] += sizes.x  # the gradient that came in
    return parts


def attention_backward(shape: StepShape) -> Parts:
    """Core attention."""
    sizes, parts = shape.tensors, _recomputed(shape)
    parts["MLP"] -= _of_layer(shape)["MLP"]
    # What lay between attention and MLP has gone, its gradient is there; CheckpointFunction.backward keeps the gradient
    # that came in, too.
    parts["residual stream"] += 0 if shape.keeps_layers else sizes.x
    parts["attention"] += sizes.q  # the gradient of the output
    ways = shape.sizes.cp_comm_type if shape.sizes.context > 1 else ["p2p"]
    inside = max((_trees_backward(shape, way) for way in ways), key=lambda parts: sum(parts.values()))
    return {part: parts.get(part, 0) + inside.get(part, 0) for part in parts | inside}


def _trees_backward(shape: StepShape, way: str) -> Parts:
    """All trees of the micro-batch: what one has found stays while the next is at work, and all exchange at once."""
    trees = [_trunk_backward(shape, tree, way) for tree in shape.layout.trees]
    parts = {part: sum(tree[part] for tree in trees) for part in ("attention", "communication")}
    return parts | {"kernel workspace": max(tree["kernel workspace"] for tree in trees)}


def attention_workspace(queries: int, keys: int, heads: int, groups: int, head_dim: int, element_size: int = 2) -> int:
    """What FlashAttention-2's backward kernel allocates inside itself.

    From its source in torch (aten/src/ATen/native/transformers/cuda/flash_attn/flash_api.cpp, mha_bwd): an fp32
    accumulator of dQ and one number a row, for queries rounded up to 128, and, with fewer key heads, dK and dV of every
    query head before they are added up. FlashAttention-3 has fp32 accumulators of dK and dV in their place, which are
    not larger where two or more query heads share a key head; of cuDNN's it is not known.
    """
    rows = -(-queries // 128) * 128
    expanded = 2 * element_size * keys * heads * head_dim if groups != heads else 0
    return 4 * rows * heads * (head_dim + 1) + expanded


def _of_layer(shape: StepShape) -> Parts:
    """What autograd keeps of one layer, beside its input."""
    sizes = shape.tensors
    core = sizes.kv + sizes.lse  # values, log-sum-exp
    if shape.recompute == "selective":
        # The log-sum-exp is computed again, but Megatron's checkpoint keeps the values as they come to core attention:
        # as a view of queries, keys and values in one tensor. So it keeps more than it saves.
        core = sizes.q + 2 * sizes.kv
    return {
        # The norm's output; rotated queries and keys; the output, which the projection keeps too.
        "attention": sizes.x + 2 * sizes.q + sizes.kv + core + sizes.angles + _unfused(shape, sizes.x),
        # The norm's output, gate and up in one tensor, their product; what SwiGLU makes of either of the two.
        "MLP": sizes.x + 3 * sizes.f + _unfused(shape, sizes.x + 2 * sizes.f),
        "residual stream": sizes.x,  # between attention and MLP
    }


def _unfused(shape: StepShape, size: int) -> int:
    """What RMSNorm (its input, normalised) and SwiGLU keep where they are not a kernel each."""
    return 0 if shape.is_fused else size


def _recomputed(shape: StepShape) -> Parts:
    """The layer that is computed again; nothing where it was kept."""
    if shape.keeps_layers:
        return dict.fromkeys(("attention", "MLP", "residual stream"), 0)
    sizes, layer = shape.tensors, _of_layer(shape)
    if shape.recompute == "keep-attention":
        layer["attention"] -= sizes.q + sizes.lse  # counted as kept
    # CheckpointFunction.backward holds the layer's output to its end (megatron/core/tensor_parallel/random.py), though
    # nobody reads it.
    layer["residual stream"] += sizes.x
    return layer


def _trunk_backward(shape: StepShape, tree: TreeLayout, way: str) -> Parts:
    """Inside tree_attention's backward pass, while a kernel works on the trunk (model/trunk.py, model/exchange.py)."""
    cp, sizes = shape.sizes.context, shape.tensors
    swapping = {"a2a": cp, "a2a+p2p": (shape.sizes.hierarchical or (1,))[0]}.get(way, 1)
    gathers, to_fp32 = way in ("all_gather", "allgather"), 4 / shape.element_size
    q, kv, lse = (size * tree.rank_trunk // shape.layout.length for size in (sizes.q, sizes.kv, sizes.lse))
    # Of the branches of all ranks.
    q_B, kv_B = (size * tree.padded_branches // shape.layout.length for size in (sizes.q, sizes.kv))

    def call(queries: float, keys: float) -> tuple[int, int]:
        """(dQ, dK and dV; workspace) of a kernel for these shares of a rank's queries and keys."""
        tokens, heads, groups = tree.rank_trunk * swapping, shape.heads // swapping, shape.groups // swapping
        shares = int(tokens * queries), int(tokens * keys)
        workspace = attention_workspace(*shares, heads, groups, shape.head_dim, shape.element_size)
        return int(q * queries + 2 * kv * keys), workspace

    sent = 3 * q_B + 2 * kv_B if cp > 1 else 0  # the branches' dO, Q, O, K, V on every rank
    sent += 3 * q + 2 * kv + lse if swapping > 1 else 0  # the trunk's, swapped
    if swapping == cp:
        found, workspace = call(1, 1)
        found += 2 * kv  # from the branches, which were first
        if cp > 1:  # their own gradients are on their way
            found += int((q_B + 2 * kv_B) * to_fp32)
            sent += 2 * (q_B + 2 * kv_B)
    else:
        # The block of an earlier rank's keys or of a later rank's, beside the sum of dQ in fp32.
        found, workspace = max(call(1, 0.5), call(0.5, 1), key=sum)
        found += int(q * to_fp32)
        # Keys and values: those at work and those that arrive, or all ranks' and the own.
        sent += 2 * kv * (cp + 1 if gathers else 2)
        # Their gradients in fp32: what was sent and what arrives; gathered ones are added up at home.
        sent += int(2 * kv * to_fp32) * (3 if gathers else 2)
    return {"attention": found, "kernel workspace": workspace, "communication": sent}
