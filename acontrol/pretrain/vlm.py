"""The BLIP-2: a vision tower on patch labels, then a Q-Former on image-text pairs."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertTokenizer, Blip2ForImageTextRetrieval

from acontrol.method.csm import embed_patches
from acontrol.pretrain.pool import DefectType, Pool
from acontrol.pretrain.settings import VlmStage
from acontrol.runs.stage import StageContext, run_stage

ANOMALY_TEXT = "This is an image with"  # config.CsmConfig's template.


def train_vlm(
    vlm: Blip2ForImageTextRetrieval,
    tokenizer: BertTokenizer,
    pool: Pool,
    stage: VlmStage,
    context: StageContext,
) -> None:
    """Train the vision tower on patch labels, freeze it, then the Q-Former by ITC and ITM."""
    vlm.train()
    if stage.vision_steps:
        _train_vision(vlm, pool, stage, context)
    vlm.vision_model.eval().requires_grad_(False)
    embedded = embed_all_patches(vlm, pool, context.device)
    texts = Texts.of(pool.vocabulary, tokenizer)

    def loss(step: int) -> dict[str, Tensor]:
        chosen = context.chosen("qformer", step, stage.batch_size, len(pool))
        generator = context.generator("qformer texts", step)
        form = torch.randint(len(texts.keys), (len(chosen),), generator=generator)
        visual, label = embedded[chosen].to(context.device).float(), pool.labels[chosen]
        ids, attention = texts.take(form, label, context.device)
        # Text j matches image i if image i's own text in that form reads the same.
        matches = texts.keys[form[None], label[:, None]] == texts.keys[form, label][None]
        matches = matches.to(context.device)
        similarity = similarities(vlm, visual, ids, attention)
        itc = _contrastive(similarity / stage.temperature, matches)
        itm = _matching(vlm, visual, ids, attention, similarity.detach(), matches, generator)
        return {"loss": itc + itm, "itc": itc.detach(), "itm": itm.detach()}

    run_stage(
        "qformer", vlm, loss, context, steps=stage.steps, learning_rate=stage.learning_rate
    )
    vlm.eval().requires_grad_(False)


@dataclass(frozen=True)
class Texts:
    """All defect types in four forms: caption, plain caption, T_a, plain T_a.

    Attributes:
        ids: (4, defect type, token) token ids, padded.
        attention: Attention mask of the same shape, 0 on padding.
        keys: (4, defect type); two defect types share a key if their texts are equal.
    """

    ids: Tensor
    attention: Tensor
    keys: Tensor

    @classmethod
    def of(cls, vocabulary: tuple[DefectType, ...], tokenizer: BertTokenizer) -> "Texts":
        """Tokenize a vocabulary."""
        forms = [
            [entry.caption for entry in vocabulary],
            [entry.plain_caption for entry in vocabulary],
            [f"{ANOMALY_TEXT} {entry.phrase}" for entry in vocabulary],
            [f"{ANOMALY_TEXT} {entry.plain_phrase}" for entry in vocabulary],
        ]
        flat = [text for form in forms for text in form]
        batch = tokenizer(flat, padding=True, return_tensors="pt")
        shape = (len(forms), len(vocabulary), -1)
        key_of = {text: key for key, text in enumerate(dict.fromkeys(flat))}
        keys = torch.tensor([key_of[text] for text in flat]).view(shape[:2])
        return cls(batch["input_ids"].view(shape), batch["attention_mask"].view(shape), keys)

    def take(self, form: Tensor, label: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """Ids and attention mask of some texts."""
        return self.ids[form, label].to(device), self.attention[form, label].to(device)


@torch.no_grad()
def embed_all_patches(
    vlm: Blip2ForImageTextRetrieval, pool: Pool, device: torch.device
) -> Tensor:
    """e_v of all images, (N, 1 + patch, width), in bfloat16 to save memory."""
    return torch.cat(
        [
            embed_patches(vlm, pool.pixels(indices).to(device)).to("cpu", torch.bfloat16)
            for indices in torch.arange(len(pool)).split(128)
        ]
    )


def similarities(
    vlm: Blip2ForImageTextRetrieval, visual: Tensor, ids: Tensor, attention: Tensor
) -> Tensor:
    """ITC's cosines, (image, text), of the best query of each image."""
    queries = vlm.query_tokens.expand(len(visual), -1, -1)
    image = vlm.qformer(query_embeds=queries, encoder_hidden_states=visual).last_hidden_state
    image = F.normalize(vlm.vision_projection(image), dim=-1)
    embedded = vlm.embeddings(input_ids=ids)
    text = vlm.qformer(query_embeds=embedded, query_length=0, attention_mask=attention)
    text = F.normalize(vlm.text_projection(text.last_hidden_state[:, 0]), dim=-1)
    return torch.einsum("iqd,td->itq", image, text).amax(dim=-1)


def matching_logits(
    vlm: Blip2ForImageTextRetrieval, visual: Tensor, ids: Tensor, attention: Tensor
) -> Tensor:
    """ITM's two logits (no, yes) of each image with its text."""
    queries = vlm.query_tokens.expand(len(visual), -1, -1)
    length = queries.shape[1]
    embedded = vlm.embeddings(input_ids=ids, query_embeds=queries)
    mask = torch.cat([attention.new_ones(len(ids), length), attention], dim=1)
    hidden = vlm.qformer(
        query_embeds=embedded,
        query_length=length,
        attention_mask=mask,
        encoder_hidden_states=visual,
    ).last_hidden_state
    return vlm.itm_head(hidden[:, :length]).mean(dim=1)


@torch.no_grad()
def retrieval(
    vlm: Blip2ForImageTextRetrieval, tokenizer: BertTokenizer, pool: Pool, device: torch.device
) -> dict[str, float]:
    """How often ITC ranks the image's own caption first among those of the vocabulary."""
    texts = Texts.of(pool.vocabulary, tokenizer)
    labels = torch.arange(len(pool.vocabulary))
    ids, attention = texts.take(torch.zeros_like(labels), labels, device)
    best = torch.cat(
        [
            similarities(vlm, part.to(device).float(), ids, attention).argmax(dim=1).cpu()
            for part in embed_all_patches(vlm, pool, device).split(128)
        ]
    )
    retrieved = [pool.vocabulary[label] for label in best.tolist()]
    pairs = list(zip(pool.defect_types, retrieved, strict=True))
    return {
        "retrieval": sum(a == b for a, b in pairs) / len(pairs),
        "retrieval_category": sum(a.category == b.category for a, b in pairs) / len(pairs),
        "retrieval_defect": sum(a.defect == b.defect for a, b in pairs) / len(pairs),
        "vocabulary": len(pool.vocabulary),
    }


def _train_vision(
    vlm: Blip2ForImageTextRetrieval, pool: Pool, stage: VlmStage, context: StageContext
) -> None:
    """Classify each patch by the defect it touches, and the class token by product."""
    phrases = sorted({entry.phrase for entry in pool.vocabulary})
    categories = sorted({entry.category for entry in pool.vocabulary})
    background = len(phrases)
    phrase = torch.tensor([phrases.index(entry.phrase) for entry in pool.vocabulary])
    category = torch.tensor([categories.index(entry.category) for entry in pool.vocabulary])
    size = vlm.config.vision_config.patch_size
    touched = F.max_pool2d(pool.masks.float(), size).flatten(1).bool()
    labels = torch.where(touched, phrase[pool.labels][:, None], background)
    width = vlm.config.vision_config.hidden_size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(context.seed)
        heads = nn.ModuleDict(
            {
                "patch": nn.Linear(width, background + 1),
                "product": nn.Linear(width, len(categories)),
            }
        ).to(context.device)
    # Most patches show no defect.
    balance = torch.ones(background + 1, device=context.device)
    balance[background] = 0.1

    def loss(step: int) -> dict[str, Tensor]:
        chosen = context.chosen("vision", step, stage.batch_size, len(pool))
        embedded = embed_patches(vlm, pool.pixels(chosen).to(context.device))
        patch = F.cross_entropy(
            heads["patch"](embedded[:, 1:]).flatten(0, 1),
            labels[chosen].flatten().to(context.device),
            balance,
        )
        product = F.cross_entropy(
            heads["product"](embedded[:, 0]), category[pool.labels[chosen]].to(context.device)
        )
        total = patch + product
        return {"loss": total, "patch": patch.detach(), "product": product.detach()}

    run_stage(
        "vision",
        nn.ModuleDict({"tower": vlm.vision_model, "heads": heads}),
        loss,
        context,
        steps=stage.vision_steps,
        learning_rate=stage.learning_rate,
    )


def _contrastive(logits: Tensor, matches: Tensor) -> Tensor:
    """Cross-entropy over texts and over images, the target spread evenly over all matches."""
    losses = []
    for scores, truth in ((logits, matches), (logits.T, matches.T)):
        share = truth.float() / truth.sum(dim=1, keepdim=True)
        losses.append(-(share * scores.log_softmax(dim=1)).sum(dim=1).mean())
    return torch.stack(losses).mean()


def _matching(
    vlm: Blip2ForImageTextRetrieval,
    visual: Tensor,
    ids: Tensor,
    attention: Tensor,
    similarity: Tensor,
    matches: Tensor,
    generator: torch.Generator,
) -> Tensor:
    """Binary loss on true pairs and on hard negatives, drawn by ITC's similarity."""

    def hardness(similarity: Tensor, matches: Tensor) -> Tensor:
        weights = (similarity / 0.1).softmax(dim=1).masked_fill(matches, 0)
        return weights.cpu() + 1e-9 * (~matches).cpu()

    hard_texts = hardness(similarity, matches)
    hard_images = hardness(similarity.T, matches.T)
    rows = torch.nonzero((hard_texts.sum(dim=1) > 0) & (hard_images.sum(dim=1) > 0)).flatten()
    if len(rows) == 0:
        text = image = rows
    else:
        text = torch.multinomial(hard_texts[rows], 1, generator=generator).flatten()
        image = torch.multinomial(hard_images[rows], 1, generator=generator).flatten()
    own = torch.arange(len(ids))
    images, texts = torch.cat([own, rows, image]), torch.cat([own, text, rows])
    logits = matching_logits(vlm, visual[images], ids[texts], attention[texts])
    truth = torch.zeros(len(images), dtype=torch.long, device=logits.device)
    truth[: len(ids)] = 1
    return F.cross_entropy(logits, truth)
