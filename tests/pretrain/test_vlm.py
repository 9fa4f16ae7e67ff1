import torch

from acontrol.networks.load import BaseModels
from acontrol.pretrain.pool import built_in_vocabulary
from acontrol.pretrain.vlm import Texts, _contrastive, matching_logits, similarities


def test_equal_texts_share_a_key(tiny_base: BaseModels) -> None:
    vocabulary = built_in_vocabulary()
    texts = Texts.of(vocabulary, tiny_base.vlm_tokenizer)  # type: ignore[arg-type]
    assert [len(set(row.tolist())) for row in texts.keys] == [84, 42, 14, 7]
    for form, label in ((1, 4), (3, 80)):
        text = tiny_base.vlm_tokenizer.decode(
            texts.ids[form, label][texts.attention[form, label].bool()],
            skip_special_tokens=True,
        )
        plain = vocabulary[label].plain_phrase
        expected = (vocabulary[label].plain_caption, f"this is an image with {plain}")
        assert text == expected[form == 3]


def test_the_target_is_spread_over_all_matches() -> None:
    matches = torch.tensor([[True, True, False], [True, True, False], [False, False, True]])
    right = torch.where(matches, 20.0, -20.0)
    # Two texts match: half the weight on each, and no logits can do better than log 2.
    expected = (2 * torch.log(torch.tensor(2.0)) + 0) / 3
    torch.testing.assert_close(_contrastive(right, matches), expected)
    assert _contrastive(-right, matches) > 10


def test_itc_and_itm_agree_with_the_class_itself(tiny_base: BaseModels) -> None:
    vlm = tiny_base.vlm
    pixels = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    batch = tiny_base.vlm_tokenizer(
        ["a red stain", "a crack", "tile"], padding=True, return_tensors="pt"
    )
    ids, attention = batch["input_ids"], batch["attention_mask"]
    with torch.no_grad():
        visual = vlm.vision_model(pixel_values=pixels).last_hidden_state
        options = {"pixel_values": pixels, "input_ids": ids, "attention_mask": attention}
        itm = vlm(**options, use_image_text_matching_head=True).logits_per_image
        itc = vlm(**options, use_image_text_matching_head=False).logits_per_image
        torch.testing.assert_close(matching_logits(vlm, visual, ids, attention), itm)
        torch.testing.assert_close(similarities(vlm, visual, ids, attention), itc)
