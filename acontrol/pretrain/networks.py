"""The networks of a base: small ones of Stable Diffusion 1.5's and BLIP-2's own classes.

The default sizes have 3.7 million parameters, for 64 px images.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from safetensors.torch import save_file
from tokenizers import pre_tokenizers
from transformers import (
    BertTokenizer,
    Blip2Config,
    Blip2ForImageTextRetrieval,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
)

from acontrol.pretrain.settings import Sizes

TEXT_TOKENS = 77
HEAD_DIM = 16

# Of the built-in data and of common defect names; other words are spelled in letters.
WORDS = """
    a an the of with and on in no this is image photo picture product good normal defect
    defects anomaly several large small light dark red blue green black white yellow
    brown orange wood fabric metal tile leather button bottle cable capsule carpet grid
    hazelnut nut pill screw toothbrush transistor zipper magnetic scratch hole stain
    crack dent spots broken bent cut glue color contamination print fold poke squeeze
    faulty imprint missing wire thread scratched rough misplaced blowhole break fray
    uneven
""".split()  # noqa: SIM905 (a list would take a line a word)


@dataclass
class Networks:
    """The parts of a base, trainable."""

    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    unet: UNet2DConditionModel
    scheduler: DDPMScheduler
    vlm: Blip2ForImageTextRetrieval
    vlm_tokenizer: BertTokenizer


def build(sizes: Sizes, seed: int, words: Sequence[str] = ()) -> Networks:
    """Build all networks with fresh weights; torch's global generator stays untouched.

    Args:
        sizes: Sizes of the networks.
        seed: Seed of the weights.
        words: Further words that become single tokens.
    """
    words = list(dict.fromkeys([*WORDS, *words]))
    factor = 2 ** (len(sizes.vae_channels) - 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = AutoencoderKL(
            block_out_channels=sizes.vae_channels,
            down_block_types=("DownEncoderBlock2D",) * len(sizes.vae_channels),
            up_block_types=("UpDecoderBlock2D",) * len(sizes.vae_channels),
            latent_channels=4,
            norm_num_groups=8,
            sample_size=sizes.resolution,
        )
        tokenizer = clip_tokenizer(words)
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=sizes.width,
                intermediate_size=4 * sizes.width,
                num_hidden_layers=2,
                num_attention_heads=sizes.width // HEAD_DIM,
                max_position_embeddings=TEXT_TOKENS,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
        # At the class's 0.02 the words of a short caption hardly differ, and the U-Net
        # learns to do without them.
        torch.nn.init.normal_(text_encoder.get_input_embeddings().weight, std=1.0)
        attending = len(sizes.unet_channels) - 1
        unet = UNet2DConditionModel(
            sample_size=sizes.resolution // factor,
            block_out_channels=sizes.unet_channels,
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D",) * attending + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * attending,
            cross_attention_dim=sizes.width,
            attention_head_dim=4,
            norm_num_groups=8,
        )
        vlm_tokenizer = bert_tokenizer(words)
        vlm = Blip2ForImageTextRetrieval(vlm_config(sizes, len(vlm_tokenizer)))
        # Fresh query tokens are all zero, and equal queries would stay equal.
        torch.nn.init.normal_(vlm.query_tokens, std=0.5)
    # SD1.5's own schedule.
    scheduler = DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        num_train_timesteps=1000,
        clip_sample=False,
        steps_offset=1,
    )
    return Networks(vae, text_encoder, tokenizer, unet, scheduler, vlm, vlm_tokenizer)


def save(networks: Networks, folder: Path) -> None:
    """Write all networks in half precision, in the layout that ``load_base`` reads."""
    for part in ("vae", "unet", "text_encoder", "vlm"):
        model = getattr(networks, part)
        if part in ("vae", "unet"):
            model.save_config(folder / part)
            file = folder / part / "diffusion_pytorch_model.safetensors"
        else:
            # transformers' save_pretrained writes nothing on ranks other than the first, and
            # leaves a folder that looks complete.
            model.config.save_pretrained(folder / part)
            file = folder / part / "model.safetensors"
        weights = {
            name: value.to("cpu", torch.float16).contiguous()
            for name, value in model.state_dict().items()
        }
        save_file(weights, file, metadata={"format": "pt"})
    networks.tokenizer.save_pretrained(folder / "tokenizer")
    networks.scheduler.save_pretrained(folder / "scheduler")
    networks.vlm_tokenizer.save_pretrained(folder / "vlm")


def vlm_config(sizes: Sizes, vocab_size: int) -> Blip2Config:
    """A BLIP-2 with cross-attention in every other layer of its Q-Former."""
    return Blip2Config(
        vision_config=Blip2VisionConfig(
            hidden_size=sizes.vision_width,
            intermediate_size=4 * sizes.vision_width,
            num_hidden_layers=sizes.vision_layers,
            num_attention_heads=4,
            image_size=sizes.resolution,
            patch_size=sizes.patch,
            # At the class's default, 1e-10, all patches look the same.
            initializer_range=0.02,
        ).to_dict(),
        qformer_config=Blip2QFormerConfig(
            vocab_size=vocab_size,
            hidden_size=sizes.width,
            intermediate_size=4 * sizes.width,
            num_hidden_layers=sizes.qformer_layers,
            num_attention_heads=4,
            encoder_hidden_size=sizes.vision_width,
            cross_attention_frequency=2,
            max_position_embeddings=64,
            use_qformer_text_input=True,
        ).to_dict(),
        num_query_tokens=sizes.queries,
        image_text_hidden_size=sizes.width,
    )


def clip_tokenizer(words: Sequence[str]) -> CLIPTokenizer:
    """CLIP's byte-level tokenizer with ``words`` as single tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = [*alphabet, *(f"{letter}</w>" for letter in alphabet)]
    merges: list[tuple[str, str]] = []
    for word in words:
        parts = [*word[:-1], f"{word[-1]}</w>"]
        # Merging from the left: "s c r" -> "sc r" -> "scr" ..., each prefix a token.
        while len(parts) > 1:
            pair = (parts[0], parts[1])
            parts = ["".join(pair), *parts[2:]]
            if pair not in merges:
                merges.append(pair)
                vocab.append(parts[0])
    vocab += ["<|startoftext|>", "<|endoftext|>"]
    ids = {token: index for index, token in enumerate(dict.fromkeys(vocab))}
    return CLIPTokenizer(vocab=ids, merges=merges, model_max_length=TEXT_TOKENS)


def bert_tokenizer(words: Sequence[str]) -> BertTokenizer:
    """BERT's word pieces: ``words``, and letters to spell others."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    pieces = [*special, *letters, *(f"##{letter}" for letter in letters), *words]
    ids = {token: index for index, token in enumerate(dict.fromkeys(pieces))}
    return BertTokenizer(vocab=ids, model_max_length=64)
