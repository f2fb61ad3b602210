"""Tokenizers of published pipelines, which single files do not hold: CLIP's from its merges, others from the hub."""

import gzip
import importlib.util
from pathlib import Path

from diffusers.loaders.single_file_utils import DIFFUSERS_DEFAULT_PIPELINE_PATHS
from transformers import CLIPTokenizer, T5Tokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from scott.errors import UserError, first_line

KINDS = {
    "v1": "sd15",
    "v2": "sd21",
    "xl_base": "sdxl",
    "sd3": "sd3",
    "sd35_medium": "sd35-medium",
    "sd35_large": "sd35-large",
    "flux-dev": "flux",
}
"""diffusers' name of a file's kind → the configs of its published pipeline."""
_BPE = "bpe_simple_vocab_16e6.txt.gz"
_MERGES = 49152 - 256 - 2


def tokenizer_of(name: str, part: str, kind: str) -> CLIPTokenizer | T5Tokenizer:
    """A tokenizer of one of the published pipelines of `KINDS`, and of a class of transformers. Raises `UserError`
    where it is not to be had."""
    is_t5 = kind.startswith("T5")
    found = None if is_t5 else importlib.util.find_spec("open_clip")
    if found and found.submodule_search_locations:
        # OpenAI's encoders were trained on captions padded by the end token, OpenCLIP's by id 0
        pad = "!" if part == "tokenizer_2" or name == "sd21" else "<|endoftext|>"
        return clip_tokenizer(Path(found.submodule_search_locations[0]) / _BPE, pad)
    of_file = next(of_file for of_file, known in KINDS.items() if known == name)
    hub = DIFFUSERS_DEFAULT_PIPELINE_PATHS[of_file]["pretrained_model_name_or_path"]
    try:
        loader = T5Tokenizer if is_t5 else CLIPTokenizer
        made = loader.from_pretrained(hub, subfolder=part)
        if made("a cat").input_ids == made("a dog").input_ids:  # transformers makes an empty one of missing files
            raise OSError("none of its files")
        return made
    except (OSError, ValueError) as error:
        package = "" if is_t5 else "pip install open_clip_torch, which has it, or "
        raise UserError(
            f"the file has no tokenizer, and the hub does not give {hub}'s {part} ({first_line(error):.80}); "
            f"{package}give --teacher-config a folder that has it"
        ) from None


def clip_tokenizer(file: Path, pad: str) -> CLIPTokenizer:
    """CLIP's of 77 tokens, from the file of merges that OpenAI published it with.

    Its ids: the bytes as characters, those at a word's end, the merges in their order, start and end.
    """
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        merges = [tuple(line.split()) for line in lines.read().split("\n")[1 : 1 + _MERGES]]
    letters = [*bytes_to_unicode().values()]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges)]
    vocab = {token: index for index, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=77, pad_token=pad)
