"""Properties of models with heads of labels and spans: equal scores in transformers, both ways."""

from dataclasses import replace

import pytest
import torch

from model import families
from model.config import ModelConfig, bert, gpt2, gpt_neo, llama, qwen3, roberta
from model.tokenizer import PAD
from model.transformer import PADDING, Transformer

VOCAB = 64
SHAPES = {
    "gpt2": gpt2(width=16, layers=2, heads=2, ffn_width=24, context=32, dropout=0.0),
    "gpt_neo": gpt_neo(width=16, layers=2, heads=2, ffn_width=24, context=32, window=4, dropout=0.0),
    "llama": llama(width=16, layers=2, heads=2, kv_heads=1, ffn_width=24, context=32),
    "qwen3": qwen3(width=16, layers=2, heads=2, kv_heads=1, ffn_width=24, context=32),
    "bert": bert(width=16, layers=2, heads=2, ffn_width=24, context=32, dropout=0.0),
    "roberta": replace(roberta(width=16, layers=2, heads=2, ffn_width=24, context=32, dropout=0.0), position_offset=PAD + 1),
}
LABELS = ("card arrival", "丢卡", "top up")


def headed(config: ModelConfig, head: str) -> ModelConfig:
    labels = LABELS if head == "labels" else ("start", "end")
    return replace(config, head=head, labels=labels, tie_embeddings=False, pooler="none")


def random(config: ModelConfig) -> Transformer:
    model = Transformer(config, VOCAB)
    model.init_weights(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5).add_(0.01)
    return model.eval()


@pytest.mark.parametrize("head", ["labels", "spans"])
@pytest.mark.parametrize("family", SHAPES)
def test_a_head_scores_as_transformers_class_of_the_same_directory(family, head, tmp_path):
    from transformers import AutoModelForQuestionAnswering, AutoModelForSequenceClassification

    config = headed(SHAPES[family], head)
    ours = random(config)
    families.save(ours, config, VOCAB, tmp_path)
    auto = AutoModelForSequenceClassification if head == "labels" else AutoModelForQuestionAnswering
    theirs, said = auto.from_pretrained(tmp_path, output_loading_info=True)
    assert not said["missing_keys"] and not said["unexpected_keys"] and not said["mismatched_keys"]
    tokens = torch.randint(4, VOCAB, (3, 9), generator=torch.Generator().manual_seed(1))
    lengths = [9, 6, 4]
    for row, length in enumerate(lengths):
        tokens[row, length:] = PAD
    documents = torch.where(tokens == PAD, PADDING, 0)
    with torch.no_grad():
        scores = ours(tokens, documents_BT=documents)
        expected = theirs.eval()(tokens, attention_mask=(tokens != PAD).long())
    if head == "labels":
        place = torch.tensor([0, 0, 0] if config.kind == "encoder" else [n - 1 for n in lengths])
        torch.testing.assert_close(scores[torch.arange(3), place], expected.logits, atol=1e-5, rtol=1e-5)
        assert theirs.config.id2label == dict(enumerate(LABELS))
    else:
        for column, found in enumerate((expected.start_logits, expected.end_logits)):
            for row, length in enumerate(lengths):
                torch.testing.assert_close(scores[row, :length, column], found[row, :length], atol=1e-5, rtol=1e-5)
    theirs.save_pretrained(tmp_path / "back")
    back = families.load(tmp_path / "back")
    assert back.config == config
    assert all(torch.equal(t, back.state_dict()[name]) for name, t in ours.state_dict().items())
