"""A small Stable Diffusion 1.5 and BLIP-2 of the genuine classes, built offline.

3.7 million parameters for 64 px images. The weights are random: the machinery is real, the
pictures are noise.
"""

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

IMAGE_PX = 64
WIDTH = 64  # of text embeddings and of C', which must agree
TEXT_TOKENS = 77

# Words of the built-in data and of common defect names; others are spelled in letters.
WORDS = """
    a an the of with and on in no this is image photo picture product good normal defect
    defects anomaly several large small light dark red blue green black white yellow
    brown orange wood fabric metal tile leather button bottle cable capsule carpet grid
    hazelnut nut pill screw toothbrush transistor zipper magnetic scratch hole stain
    crack dent spots broken bent cut glue color contamination print fold poke squeeze
    faulty imprint missing wire thread scratched rough misplaced blowhole break fray
    uneven
""".split()  # noqa: SIM905 (a list would take a line a word)


def build_tiny_base(folder: Path, seed: int) -> None:
    """Write the tiny base to ``folder``, in the layout that ``load_base`` reads."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = AutoencoderKL(
            block_out_channels=(16, 32, 64),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            latent_channels=4,
            norm_num_groups=8,
            sample_size=IMAGE_PX,
        )
        tokenizer = clip_tokenizer()
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=WIDTH,
                intermediate_size=4 * WIDTH,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=TEXT_TOKENS,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
        unet = UNet2DConditionModel(
            sample_size=IMAGE_PX // 4,
            block_out_channels=(48, 96),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=WIDTH,
            attention_head_dim=4,
            norm_num_groups=8,
        )
        vlm_tokenizer = bert_tokenizer()
        vlm = Blip2ForImageTextRetrieval(vlm_config(len(vlm_tokenizer)))
        # Fresh query tokens are all zero, and alike queries would stay alike.
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
    for part, model in {"vae": vae, "unet": unet, "tokenizer": tokenizer}.items():
        model.save_pretrained(folder / part)
    scheduler.save_pretrained(folder / "scheduler")
    for part, model in {"text_encoder": text_encoder, "vlm": vlm}.items():
        # transformers' save_pretrained writes nothing on other ranks than the first, and
        # leaves a folder that looks whole.
        model.config.save_pretrained(folder / part)
        weights = {name: value.contiguous() for name, value in model.state_dict().items()}
        save_file(weights, folder / part / "model.safetensors", metadata={"format": "pt"})
    vlm_tokenizer.save_pretrained(folder / "vlm")


def vlm_config(vocab_size: int) -> Blip2Config:
    """A BLIP-2 of 8 x 8 patches, 8 queries and cross-attention in every other layer."""
    return Blip2Config(
        vision_config=Blip2VisionConfig(
            hidden_size=96,
            intermediate_size=384,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=IMAGE_PX,
            patch_size=8,
            # The class's default, 1e-10, leaves every patch alike.
            initializer_range=0.02,
        ).to_dict(),
        qformer_config=Blip2QFormerConfig(
            vocab_size=vocab_size,
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            num_hidden_layers=6,
            num_attention_heads=4,
            encoder_hidden_size=96,
            cross_attention_frequency=2,
            max_position_embeddings=64,
            use_qformer_text_input=True,
        ).to_dict(),
        num_query_tokens=8,
        image_text_hidden_size=WIDTH,
    )


def clip_tokenizer() -> CLIPTokenizer:
    """CLIP's byte-level tokenizer with the built-in words as single tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = [*alphabet, *(f"{letter}</w>" for letter in alphabet)]
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        parts = [*word[:-1], f"{word[-1]}</w>"]
        # Merging from the left: "s c r" -> "sc r" -> "scr" ..., each prefix a token.
        while len(parts) > 1:
            pair = (parts[0], parts[1])
            parts = ["".join(pair), *parts[2:]]
            if pair not in merges:
                merges.append(pair)
                vocab.append(parts[0])
    vocab += ["<|startoftext|>", "<|endoftext|>"]
    ids = {token: place for place, token in enumerate(dict.fromkeys(vocab))}
    return CLIPTokenizer(vocab=ids, merges=merges, model_max_length=TEXT_TOKENS)


def bert_tokenizer() -> BertTokenizer:
    """BERT's word pieces: the built-in words, and letters for the rest."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    pieces = [*special, *letters, *(f"##{letter}" for letter in letters), *WORDS]
    ids = {token: place for place, token in enumerate(dict.fromkeys(pieces))}
    return BertTokenizer(vocab=ids, model_max_length=64)
