"""Forward and backward passes of the frozen Q-Former, with gradients of e_v + e_g only.

It has the original module's weights and order of operations. Compared with autograd on that
module, anything independent of e_g is computed once, a step ends at the last map that Eq. (2)
uses, and the backward pass computes no gradient but the embedding's.

    e    embedding   e_v + e_g, class token first
    S    self maps   self-attention of each layer, over queries then text
    X    cross maps  cross-attention, queries to image tokens
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from acontrol.method import anomaly_map
from acontrol.method import qformer_layers as ops
from acontrol.method.anomaly_map import ReferenceText


@dataclass
class Trace:
    """A pass: its embedding, its maps in float32 at least, and tensors for the backward pass.

    The maps have an entry for each layer that the pass reached.
    """

    embedding: Tensor
    self_maps: list[Tensor] = field(default_factory=list)
    cross_maps: list[Tensor | None] = field(default_factory=list)
    layers: list[ops.SavedLayer] = field(default_factory=list)


class QFormerPass:
    """One text and one batch of images: an ``asea.GuidedAttention``, and C' at the end.

    Passes run in the precision of the Q-Former's weights, whatever the caller's autocast.

    Attributes:
        key_query: Q W_k^T / sqrt(d) of the first cross-attention, one row per head and query;
            its logits are ``key_query @ e^T``.
        query_weight: Weight of each row in the first layer's map: the anomaly's attention to
            the query in that layer, or uniform.
    """

    key_query: Float[Tensor, "batch row width"]
    query_weight: Float[Tensor, "batch row"]

    @torch.no_grad()
    def __init__(
        self,
        vlm: Any,
        batch_size: int,
        text: ReferenceText | None,
        *,
        method: Literal["rollout", "query_mean"],
        first: bool,
        values: Float[Tensor, "batch token width"] | None = None,
    ):
        """Compute everything that does not depend on the image.

        Args:
            vlm: A ``Blip2ForImageTextRetrieval``.
            batch_size: Number of samples.
            text: T_a; None for no text, and the map is the mean over the queries.
            method: The map A of Eq. (2).
            first: Take A from the first cross-attention alone, with the text's attention to
                the queries from the same layer.
            values: What the cross-attention's values read in place of the embedding.

        Raises:
            ValueError: If the map is a rollout and no layer follows a cross-attention layer,
                or the activation is not BLIP-2's.
        """
        config = vlm.config.qformer_config
        if config.hidden_act != "gelu":
            raise ValueError(f"the Q-Former's activation is {config.hidden_act!r}, not 'gelu'")
        self.layers: list[Any] = list(vlm.qformer.encoder.layer)
        self.num_heads: int = config.num_attention_heads
        self.num_queries: int = vlm.query_tokens.shape[1]
        self.span = text.span if text is not None and method == "rollout" else None
        self.first = first
        self.values = values
        self.last = self._last_map()
        with torch.autocast(vlm.query_tokens.device.type, enabled=False):
            self._prepare(vlm, batch_size, text)

    def _prepare(self, vlm: Any, batch_size: int, text: ReferenceText | None) -> None:
        hidden = vlm.query_tokens.expand(batch_size, -1, -1)
        self.padding = None
        if text is not None:
            hidden = vlm.embeddings(input_ids=text.input_ids, query_embeds=hidden)
            padded = F.pad(text.attention_mask, (self.num_queries, 0), value=1) == 0
            lowest = torch.finfo(hidden.dtype).min
            self.padding = (padded.to(hidden.dtype) * lowest)[:, None, None]
        layer, queries = self.layers[0], slice(self.num_queries)
        hidden, _ = ops.normalize(hidden, vlm.qformer.layernorm)
        self.attended, own = ops.attend_self(layer.attention, hidden, self.padding)
        self.text_rows, _ = self._feed_text(layer, self.attended)
        self.key_query = ops.key_queries(layer.crossattention, self.attended[:, queries])
        self.dtype = self.attended.dtype
        self.values = None if self.values is None else self.values.to(self.dtype)
        self.first_map = anomaly_map.at_least_float32(own.probs)
        weight = self.first_map.new_full((batch_size, self.num_queries), 1 / self.num_queries)
        if self.span is not None:
            read = self.first_map.mean(dim=1)[:, self.num_queries :, queries]
            weight = anomaly_map.anomaly_attention(read, self.span)
        self.query_weight = (weight / self.num_heads).repeat(1, self.num_heads)

    def _last_map(self) -> int:
        """The last layer with a map that A depends on."""
        if self.first:
            return 0
        crossing = [
            index for index, layer in enumerate(self.layers) if layer.has_cross_attention
        ]
        if self.span is None:
            return crossing[-1]
        following = [index + 1 for index in crossing if index + 1 < len(self.layers)]
        if not following:
            raise ValueError("rollout needs a cross-attention layer that another layer follows")
        return following[-1]

    def forward(
        self, embedding: Float[Tensor, "batch token width"]
    ) -> tuple[Float[Tensor, "batch patch"], Trace]:
        """The anomaly's attention over patches, Eq. (2), and a trace for ``backward``."""
        trace = Trace(embedding.to(self.dtype))
        self._run_layers(trace, whole=False)
        return self._attention(trace), trace

    @torch.no_grad()
    def finish(
        self, embedding: Float[Tensor, "batch token width"]
    ) -> tuple[Float[Tensor, "batch query dim"], Float[Tensor, "batch patch"]]:
        """The whole pass: the query outputs C', and the anomaly's attention."""
        trace = Trace(embedding.to(self.dtype))
        with torch.autocast(embedding.device.type, enabled=False):
            hidden = self._run_layers(trace, whole=True)
            return hidden[:, : self.num_queries], self._attention(trace)

    def _run_layers(self, trace: Trace, *, whole: bool) -> Tensor:
        """Run all layers, or stop at the last map and save tensors for the backward pass."""
        hidden, attended = self.attended, self.attended
        for index, layer in enumerate(self.layers):
            ends = index == self.last and not whole
            # A rollout ends at the text's self-attention, other maps at a cross-attention.
            reads = ends and self.span is not None and not self.first
            own, cross = None, None
            if index > 0:
                attended, own = ops.attend_self(
                    layer.attention, hidden, self.padding, map_only=reads
                )
            query = attended[:, : self.num_queries].contiguous()
            if layer.has_cross_attention and not reads:
                query, cross = ops.attend_image(
                    layer.crossattention, query, trace.embedding, self.values, map_only=ends
                )
            trace.self_maps.append(
                self.first_map if own is None else anomaly_map.at_least_float32(own.probs)
            )
            trace.cross_maps.append(None if cross is None else self._patches(cross.probs))
            if ends:
                trace.layers.append(ops.SavedLayer(own, cross))
                return hidden
            query, query_feed = ops.feed(layer.intermediate_query, layer.output_query, query)
            text, text_feed = (
                self._feed_text(layer, attended) if index else (self.text_rows, None)
            )
            hidden = torch.cat([query, text], dim=1)
            if not whole:
                trace.layers.append(ops.SavedLayer(own, cross, query_feed, text_feed))
        return hidden

    def _feed_text(
        self, layer: Any, attended: Tensor
    ) -> tuple[Tensor, ops.SavedFeedForward | None]:
        text = attended[:, self.num_queries :].contiguous()
        if self.padding is None:
            return text, None
        return ops.feed(layer.intermediate, layer.output, text)

    def _patches(self, probs: Tensor) -> Tensor:
        """Probabilities without the class token, which has no place in the image."""
        return anomaly_map.at_least_float32(probs)[..., 1:]

    def _attention(self, trace: Trace) -> Tensor:
        """Eq. (2) on a trace's maps."""
        self_maps, cross_maps = trace.self_maps, trace.cross_maps
        if self.first:
            # The text attends to queries of the layer itself, before they attend to the image.
            self_maps, cross_maps = [self_maps[0]] * 2, [cross_maps[0], None]
        if self.span is None:
            return anomaly_map.query_mean(cross_maps)
        return anomaly_map.anomaly_attention(
            anomaly_map.rollout(self_maps, cross_maps), self.span
        )

    def backward(
        self, trace: Trace, grad: Float[Tensor, "batch patch"]
    ) -> Float[Tensor, "batch token width"]:
        """The embedding's gradient from that of the attention over patches."""
        embedding_grad = torch.zeros_like(trace.embedding, dtype=grad.dtype)
        self_grads, cross_grads = self._map_grads(trace, grad)
        hidden: Tensor | None = None
        for index in reversed(range(self.last + 1)):
            layer, saved = self.layers[index], trace.layers[index]
            attended = None if hidden is None else self._feed_backward(layer, saved, hidden)
            if saved.cross is not None:
                query = None if attended is None else attended[:, : self.num_queries]
                query = ops.attend_image_backward(
                    layer.crossattention,
                    saved.cross,
                    query,
                    cross_grads[index],
                    embedding_grad,
                    to_rows=index > 0,
                )
                if query is None:
                    break
                rest = trace.self_maps[0].shape[-1] - self.num_queries
                text = (
                    query.new_zeros(len(query), rest, query.shape[2])
                    if attended is None
                    else attended[:, self.num_queries :]
                )
                attended = torch.cat([query, text], dim=1)
            assert saved.own is not None
            hidden = ops.attend_self_backward(
                layer.attention, saved.own, attended, self_grads[index]
            )
        return embedding_grad

    def _feed_backward(self, layer: Any, saved: ops.SavedLayer, hidden: Tensor) -> Tensor:
        """Through both feed-forwards; the first layer's text needs no gradient."""
        # Strided rows would be multiplied with weights sample by sample.
        query = hidden[:, : self.num_queries].contiguous()
        text = hidden[:, self.num_queries :].contiguous()
        assert saved.query_feed is not None
        query = ops.feed_backward(
            layer.intermediate_query, layer.output_query, saved.query_feed, query
        )
        if saved.text_feed is not None:
            text = ops.feed_backward(layer.intermediate, layer.output, saved.text_feed, text)
        return torch.cat([query, text], dim=1)

    def _map_grads(
        self, trace: Trace, grad: Tensor
    ) -> tuple[list[Tensor | None], list[Tensor | None]]:
        """Gradients of each layer's self and cross probabilities."""
        self_grads: list[Tensor | None] = [None] * len(trace.self_maps)
        if self.span is None:
            cross_grads = anomaly_map.query_mean_backward(trace.cross_maps, grad)
        else:
            self_grads, cross_grads = anomaly_map.rollout_backward(
                trace.self_maps, trace.cross_maps, self.span, grad
            )
        return (
            [None if grad is None else grad.to(self.dtype) for grad in self_grads],
            [
                # The class token is part of the softmax, but not of A.
                None if grad is None else F.pad(grad, (1, 0))[:, None].to(self.dtype)
                for grad in cross_grads
            ],
        )
