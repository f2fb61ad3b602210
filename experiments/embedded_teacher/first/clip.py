"""Mini-CLIP: a text and an image tower trained contrastively on the scenes (Radford et al. 2021, eq. in fig. 3).

The text tower becomes the pipeline's `text_encoder`; both towers together measure FID, CLIP score and coverage.
"""

from pathlib import Path

import torch
from experiments.embedded_teacher.stage import StageConfig, Tensors, run_stage
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from scott.errors import UserError
from scott.mini import scenes

MAX_TOKENS = 32
SHARD = Path(__file__).with_name("glyphs.tar")
"""The first edition's subjects, Noto's alone."""
MEAN, STD = 0.5, 0.5
STAGE = StageConfig(steps=1500, batch_size=128, learning_rate=1e-3, weight_decay=0.05, ema_decay=0.998, warmup=150)


def train_tokenizer(folder: Path, *, seed: int, captions: int = 20_000, vocabulary: int = 1256) -> CLIPTokenizer:
    """A byte-level BPE of CLIP's kind, trained on the first captions of the training split and saved to `folder`."""
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(_clip_words(), "removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    # CLIP encodes a lone byte at a word's end as byte + "</w>": each needs an entry, or it becomes unknown. Named here,
    # they have fixed ids, by which equally frequent pairs are merged; the trainer would number them in a random order.
    ends = [byte + "</w>" for byte in alphabet]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<|startoftext|>", "<|endoftext|>", *ends],
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    bpe.train_from_iterator(
        (scenes.scene(i, split="train", seed=seed, shard=SHARD).caption for i in range(captions)), trainer
    )
    folder.mkdir(parents=True, exist_ok=True)
    vocab_file, merges_file = bpe.model.save(str(folder))
    vocab = dict(sorted(bpe.get_vocab().items(), key=lambda entry: entry[1]))
    merges = [tuple(line.split()) for line in Path(merges_file).read_text().splitlines()[1:]]
    Path(vocab_file).unlink()
    Path(merges_file).unlink()
    tokenizer = CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=MAX_TOKENS)
    tokenizer.save_pretrained(folder)
    return tokenizer


def _clip_words() -> Regex:
    return Regex(r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+""")


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """Token ids (B, 32), padded; `UserError` when a caption is longer than the text tower takes."""
    ids = tokenizer(captions, padding="max_length", max_length=MAX_TOKENS, return_tensors="pt").input_ids
    if ids.shape[1] > MAX_TOKENS:
        longest = max(captions, key=len)
        raise UserError(f"got a caption of more than {MAX_TOKENS} tokens, the most the text encoder takes: {longest!r}")
    return ids


def build_model(tokenizer: CLIPTokenizer) -> CLIPModel:
    config = CLIPConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 128,
            "intermediate_size": 512,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "max_position_embeddings": MAX_TOKENS,
            "projection_dim": 128,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "hidden_size": 128,
            "intermediate_size": 512,
            "num_hidden_layers": 5,
            "num_attention_heads": 4,
            "image_size": scenes.RESOLUTION,
            "patch_size": 8,
            "projection_dim": 128,
        },
        projection_dim=128,
    )
    return CLIPModel(config)


def train(folder: Path, tokenizer: CLIPTokenizer, *, seed: int, config: StageConfig) -> CLIPModel:
    """Train (or resume) in `folder`; returns the averaged model in eval mode."""
    torch.manual_seed(seed)
    clip = build_model(tokenizer).train()

    def draw(indices: range, generator: torch.Generator) -> Tensors:
        drawn = [scenes.scene(index, split="train", seed=seed, shard=SHARD) for index in indices]
        pixels, captions = scenes.pictures(drawn, SHARD), [this.caption for this in drawn]
        return {"input_ids": tokenize(tokenizer, captions), "pixel_values": (pixels - MEAN) / STD}

    def losses(drawn: Tensors) -> Tensors:
        return {"contrastive": clip(**drawn, return_loss=True).loss}

    average = run_stage("clip", clip, draw, losses, config, folder, seed=seed)
    clip.load_state_dict(average)
    return clip.eval()
