"""The BLIP-2: what patches show, then which text belongs to which image."""

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
    seen = embed_all_patches(vlm, pool, context.device)
    texts = Texts.of(pool.vocabulary, tokenizer)
    kinds = pool.kinds

    def loss(step: int) -> dict[str, Tensor]:
        chosen = context.chosen("qformer", step, stage.batch_size, len(pool))
        generator = context.generator("qformer texts", step)
        form = torch.randint(len(texts.keys), (len(chosen),), generator=generator)
        visual, kind = seen[chosen].to(context.device).float(), kinds[chosen]
        ids, real = texts.take(form, kind, context.device)
        # Text j fits image i if what j says of its own kind also holds for i's.
        fits = texts.keys[form[None], kind[:, None]] == texts.keys[form, kind][None]
        fits = fits.to(context.device)
        similarity = similarities(vlm, visual, ids, real)
        itc = _contrastive(similarity / stage.temperature, fits)
        itm = _matching(vlm, visual, ids, real, similarity.detach(), fits, generator)
        return {"loss": itc + itm, "itc": itc.detach(), "itm": itm.detach()}

    run_stage(
        "qformer",
        vlm,
        loss,
        context,
        steps=stage.steps,
        learning_rate=stage.learning_rate,
    )
    vlm.eval().requires_grad_(False)


@dataclass(frozen=True)
class Texts:
    """Every kind in four forms: caption, plain caption, T_a, plain T_a.

    Attributes:
        ids: (4, kind, token) token ids, padded.
        real: The same shape, 1 on tokens that are no padding.
        keys: (4, kind); two kinds with the same key are told apart by nothing in that form.
    """

    ids: Tensor
    real: Tensor
    keys: Tensor

    @classmethod
    def of(cls, vocabulary: tuple[DefectType, ...], tokenizer: BertTokenizer) -> "Texts":
        """Tokenize a vocabulary."""
        forms = [
            [kind.caption for kind in vocabulary],
            [kind.plain_caption for kind in vocabulary],
            [f"{ANOMALY_TEXT} {kind.phrase}" for kind in vocabulary],
            [f"{ANOMALY_TEXT} {kind.plain_phrase}" for kind in vocabulary],
        ]
        flat = [text for form in forms for text in form]
        batch = tokenizer(flat, padding=True, return_tensors="pt")
        shape = (len(forms), len(vocabulary), -1)
        places = {text: place for place, text in enumerate(dict.fromkeys(flat))}
        keys = torch.tensor([places[text] for text in flat]).view(shape[:2])
        return cls(batch["input_ids"].view(shape), batch["attention_mask"].view(shape), keys)

    def take(self, form: Tensor, kind: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """Ids and attention mask of the chosen texts."""
        return self.ids[form, kind].to(device), self.real[form, kind].to(device)


@torch.no_grad()
def embed_all_patches(
    vlm: Blip2ForImageTextRetrieval, pool: Pool, device: torch.device
) -> Tensor:
    """e_v of every image, (N, 1 + patch, width), in bfloat16 to save memory."""
    return torch.cat(
        [
            embed_patches(vlm, pool.pixels(chosen).to(device)).to("cpu", torch.bfloat16)
            for chosen in torch.arange(len(pool)).split(128)
        ]
    )


def similarities(
    vlm: Blip2ForImageTextRetrieval, visual: Tensor, ids: Tensor, real: Tensor
) -> Tensor:
    """ITC's cosine of every image with every text: the best of the image's queries."""
    queries = vlm.query_tokens.expand(len(visual), -1, -1)
    image = vlm.qformer(query_embeds=queries, encoder_hidden_states=visual).last_hidden_state
    image = F.normalize(vlm.vision_projection(image), dim=-1)
    embedded = vlm.embeddings(input_ids=ids)
    text = vlm.qformer(query_embeds=embedded, query_length=0, attention_mask=real)
    text = F.normalize(vlm.text_projection(text.last_hidden_state[:, 0]), dim=-1)
    return torch.einsum("iqd,td->itq", image, text).amax(dim=-1)


def matching_logits(
    vlm: Blip2ForImageTextRetrieval, visual: Tensor, ids: Tensor, real: Tensor
) -> Tensor:
    """ITM's two logits (no, yes) of each image with its text."""
    queries = vlm.query_tokens.expand(len(visual), -1, -1)
    length = queries.shape[1]
    embedded = vlm.embeddings(input_ids=ids, query_embeds=queries)
    mask = torch.cat([real.new_ones(len(ids), length), real], dim=1)
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
    """How often the caption that ITC ranks first is the image's own, among all kinds'."""
    texts = Texts.of(pool.vocabulary, tokenizer)
    every = torch.arange(len(pool.vocabulary))
    ids, real = texts.take(torch.zeros_like(every), every, device)
    best = torch.cat(
        [
            similarities(vlm, part.to(device).float(), ids, real).argmax(dim=1).cpu()
            for part in embed_all_patches(vlm, pool, device).split(128)
        ]
    )
    shown = [pool.vocabulary[place] for place in pool.kinds.tolist()]
    found = [pool.vocabulary[place] for place in best.tolist()]
    pairs = list(zip(shown, found, strict=True))
    return {
        "retrieval": sum(a == b for a, b in pairs) / len(pairs),
        "retrieval_category": sum(a.category == b.category for a, b in pairs) / len(pairs),
        "retrieval_defect": sum(a.defect == b.defect for a, b in pairs) / len(pairs),
        "vocabulary": len(pool.vocabulary),
    }


def _train_vision(
    vlm: Blip2ForImageTextRetrieval, pool: Pool, stage: VlmStage, context: StageContext
) -> None:
    """A patch names the defect that it touches, the class token names the product."""
    phrases = sorted({kind.phrase for kind in pool.vocabulary})
    categories = sorted({kind.category for kind in pool.vocabulary})
    nothing = len(phrases)
    phrase = torch.tensor([phrases.index(kind.phrase) for kind in pool.vocabulary])
    category = torch.tensor([categories.index(kind.category) for kind in pool.vocabulary])
    size = vlm.config.vision_config.patch_size
    touched = F.max_pool2d(pool.masks.float(), size).flatten(1).bool()
    labels = torch.where(touched, phrase[pool.kinds][:, None], nothing)
    width = vlm.config.vision_config.hidden_size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(context.seed)
        heads = nn.ModuleDict(
            {
                "patch": nn.Linear(width, nothing + 1),
                "product": nn.Linear(width, len(categories)),
            }
        ).to(context.device)
    # Most patches show no defect.
    balance = torch.ones(nothing + 1, device=context.device)
    balance[nothing] = 0.1

    def loss(step: int) -> dict[str, Tensor]:
        chosen = context.chosen("vision", step, stage.batch_size, len(pool))
        seen = embed_patches(vlm, pool.pixels(chosen).to(context.device))
        patch = F.cross_entropy(
            heads["patch"](seen[:, 1:]).flatten(0, 1),
            labels[chosen].flatten().to(context.device),
            balance,
        )
        product = F.cross_entropy(
            heads["product"](seen[:, 0]), category[pool.kinds[chosen]].to(context.device)
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


def _contrastive(logits: Tensor, fits: Tensor) -> Tensor:
    """Cross-entropy over texts and over images, the truth shared among all that fit."""
    losses = []
    for scores, truth in ((logits, fits), (logits.T, fits.T)):
        share = truth.float() / truth.sum(dim=1, keepdim=True)
        losses.append(-(share * scores.log_softmax(dim=1)).sum(dim=1).mean())
    return torch.stack(losses).mean()


def _matching(
    vlm: Blip2ForImageTextRetrieval,
    visual: Tensor,
    ids: Tensor,
    real: Tensor,
    similarity: Tensor,
    fits: Tensor,
    generator: torch.Generator,
) -> Tensor:
    """Binary loss on true pairs and on hard wrong ones, drawn by ITC's similarity."""
    wrong = (similarity / 0.1).softmax(dim=1).masked_fill(fits, 0).cpu() + 1e-9 * (~fits).cpu()
    other = (similarity.T / 0.1).softmax(dim=1).masked_fill(fits.T, 0).cpu() + 1e-9 * (
        ~fits.T
    ).cpu()
    has_wrong = (wrong.sum(dim=1) > 0) & (other.sum(dim=1) > 0)
    rows = torch.nonzero(has_wrong).flatten()
    if len(rows) == 0:
        text = image = rows
    else:
        text = torch.multinomial(wrong[rows], 1, generator=generator).flatten()
        image = torch.multinomial(other[rows], 1, generator=generator).flatten()
    every = torch.arange(len(ids))
    images, texts = torch.cat([every, rows, image]), torch.cat([every, text, rows])
    logits = matching_logits(vlm, visual[images], ids[texts], real[texts])
    truth = torch.zeros(len(images), dtype=torch.long, device=logits.device)
    truth[: len(ids)] = 1
    return F.cross_entropy(logits, truth)
