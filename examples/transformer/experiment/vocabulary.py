#!/usr/bin/env python3
"""Makes a vocabulary of plain text, by merging the commonest pairs (Sennrich et al. 2016, arXiv 1508.07909).

    vocabulary.py bert SIZE TEXT... FOLDER    # vocab.txt: lower case, pieces within words marked by ##
    vocabulary.py gpt2 SIZE TEXT... FOLDER    # vocab.json and merges.txt: bytes, words with the space before them

Words are divided as the tokenizers of examples/transformer divide ASCII text. Python 3 alone.
"""

import argparse
import heapq
import json
import re
import unicodedata
from collections import Counter, defaultdict
from pathlib import Path

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def bert_words(text):
    plain = "".join(c for c in unicodedata.normalize("NFD", text.lower()) if not unicodedata.combining(c))
    return re.findall(r"[^\W_]+|[^\w\s]|_", plain)


def gpt2_words(text):
    return re.findall(r"'s|'t|'re|'ve|'m|'ll|'d| ?[^\W\d_]+| ?\d+| ?(?:[^\s\w]|_)+|\s+(?!\S)|\s+", text)


def byte_alphabet():
    """The characters that stand for bytes in GPT-2's files."""
    own = [b for b in range(256) if 0x21 <= b <= 0x7e or 0xa1 <= b <= 0xac or b >= 0xae]
    others = [b for b in range(256) if b not in own]
    return {**{b: chr(b) for b in own}, **{b: chr(0x100 + i) for i, b in enumerate(others)}}


def merge(words, count, joined):
    """words: {tuple of symbols: how often}. Merges the commonest pairs of symbols; joined(a, b): what they make."""
    words = [[list(symbols), often] for symbols, often in sorted(words.items())]
    pairs, where = Counter(), defaultdict(set)
    for i, (symbols, often) in enumerate(words):
        for pair in zip(symbols, symbols[1:]):
            pairs[pair] += often
            where[pair].add(i)
    queue = [(-often, pair) for pair, often in pairs.items()]  # with entries of the past among it
    heapq.heapify(queue)
    merges = []
    while len(merges) < count and queue:
        often, best = heapq.heappop(queue)
        if -often != pairs[best]:
            continue
        if -often < 2:
            break
        merges.append(best)
        changed = set()
        for i in where.pop(best):
            symbols, often = words[i]
            before = list(zip(symbols, symbols[1:]))
            at = 0
            while at + 1 < len(symbols):
                if (symbols[at], symbols[at + 1]) == best:
                    symbols[at:at + 2] = [joined(*best)]
                at += 1
            after = list(zip(symbols, symbols[1:]))
            for pair in before:
                pairs[pair] -= often
            for pair in after:
                pairs[pair] += often
                where[pair].add(i)
            changed.update(before, after)
        for pair in changed:
            if pair != best and pairs[pair] > 0:
                heapq.heappush(queue, (-pairs[pair], pair))
    return merges


def bert(size, text, folder):
    words = Counter(bert_words(text))
    join = lambda a, b: a + b.removeprefix("##")
    pieces = {(word[0], *("##" + c for c in word[1:])): often for word, often in words.items()}
    alphabet = sorted({piece for symbols in pieces for piece in symbols})
    merges = merge(pieces, size - len(SPECIAL) - len(alphabet), join)
    tokens = list(dict.fromkeys(SPECIAL + alphabet + [join(*pair) for pair in merges]))
    (folder / "vocab.txt").write_text("".join(token + "\n" for token in tokens), encoding="utf-8")
    return len(tokens)


def gpt2(size, text, folder):
    alphabet = byte_alphabet()
    words = Counter("".join(alphabet[b] for b in word.encode()) for word in gpt2_words(text))
    merges = merge({tuple(word): often for word, often in words.items()}, size - 257, lambda a, b: a + b)
    tokens = list(dict.fromkeys([*alphabet.values(), *(a + b for a, b in merges), "<|endoftext|>"]))
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}, ensure_ascii=False),
                                       encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges), encoding="utf-8")
    return len(tokens)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", choices=("bert", "gpt2"))
    parser.add_argument("size", type=int, help="most tokens")
    parser.add_argument("text", nargs="+", type=Path)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    text = "\n".join(path.read_text(encoding="utf-8") for path in arguments.text)
    print({"bert": bert, "gpt2": gpt2}[arguments.family](arguments.size, text, arguments.folder), "tokens")


if __name__ == "__main__":
    main()
