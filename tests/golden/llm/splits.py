"""Writes splits.json: how byte-level tokenizers cut awkward texts into words, by Python's `regex`.

    pip install regex
    python splits.py                      # the sample that is in the repository
    python splits.py 100000 /tmp/all.json # more, for AIHOST_SPLITS of the test texts_are_cut_as_pythons_regex_cuts_them

The patterns are those of the models' own tokenizer.json, as llama.cpp's llama-vocab.cpp quotes them. Each is applied within the
words that the one before left; what one does not match is a word of its own.
"""

import json
import pathlib
import random
import sys
import unicodedata

import regex

CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
ENDING = r"|\s*[\r\n]+|\s+(?!\S)|\s+"


def llama3(numbers, letters=r"\p{L}", not_signs=r"\s\p{L}\p{N}"):
    return CONTRACTION + rf"|[^\r\n\p{{L}}\p{{N}}]?[{letters}]+|{numbers}| ?[^{not_signs}]+[\r\n]*" + ENDING


def cased(numbers, contraction=CONTRACTION + "?", signs=r"[\r\n/]*", letter=""):
    upper, lower = rf"(?:{letter}[\p{{Lu}}\p{{Lt}}\p{{Lm}}\p{{Lo}}\p{{M}}])", rf"(?:{letter}[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}])"
    first = r"[^\r\n\p{L}\p{N}]?"
    return (
        rf"{first}{upper}*{lower}+{contraction}|{first}{upper}+{lower}*{contraction}|{numbers}"
        rf"| ?[^\s\p{{L}}\p{{N}}]+{signs}" + ENDING
    )


def deepseek3(ending=r"[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"):
    return r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+""" + ending


LATIN = (
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-\u1f7dᾀ-ᾴᾶ-ᾼ\u1fbeῂ-ῄῆ-ῌῐ-\u1fd3"
    "ῖ-\u1fdbῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\u2126ℨ\u212a-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃"
)
CJK = "[一-龥ࠀ-一가-\ud7ff]+"
KANA = "[一-龥\u3040-ゟ゠-ヿ]+"
ASIAN = (
    "[一-鿿㐀-䶿豈-\ufaff\u3040-ゟ゠-ヿ･-ﾟ⼀-\u2fdfเ-\u0e7f\u0e80-\u0effក-\u17ffက-႟ꩠ-ꩿꧠ-\ua9ff가-\ud7afᄀ-ᇿ]+"
)
BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"

PATTERNS = {
    "default": [r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"],
    "llama3": [llama3(r"\p{N}{1,3}")],
    "dbrx": [llama3(r"\p{N}{1,3}")],
    "glm4": [llama3(r"\p{N}{1,3}")],
    "minicpm5": [r"\p{N}{1,3}", llama3(r"\p{N}+")],
    "jais-2": [
        llama3(r"\p{N}{1,3}").removesuffix(r"|\s+(?!\S)|\s+")
        + "".join(rf"|\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4))
        + r"|\s{1,2}(?!\S)|\s{1}"
    ],
    "qwen2": [llama3(r"\p{N}")],
    "qwen35": [llama3(r"\p{N}", r"\p{L}\p{M}", r"\s\p{L}\p{M}\p{N}")],
    "laguna": [r"[^\n]+|[\n]+", llama3(r"\p{N}")],
    "ufakzeka": [llama3(r"\p{N}").removeprefix(CONTRACTION + "|")],
    "seed-coder": [CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+" + ENDING],
    "bailingmoe": [
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
    ],
    "exaone-moe": [
        CONTRACTION
        + r"|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"
    ],
    "tekken": [cased(r"\p{N}", contraction="")],
    "gpt-4o": [cased(r"\p{N}{1,3}")],
    "granite-embed-multi-97m": [cased(r"\p{N}{1,3}")],
    "tiny_aya": [r"\d{1,3}(?=(?:\d{3})*\b)", cased(r"\p{N}{1,3}")],
    "kimi-k2": [r"\p{Han}+|" + cased(r"\p{N}{1,3}", signs=r"[\r\n]*", letter=r"(?!\p{Han})")],
    "youtu": [
        "[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥\u3040-ゟ゠-ヿ]+",
        cased(r"\p{N}"),
    ],
    "deepseek-llm": [
        "[\r\n]", rf"\s?[{LATIN}]+", "\\s?[!-/:-~！-／：-～‘-‟\u3000-。]+", r"\s+$", CJK, r"\p{N}+",
    ],
    "deepseek-coder": ["[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", CJK, r"\p{N}"],
    "deepseek-v3": [r"\p{N}{1,3}", KANA, deepseek3()],
    "spark2_5": [r"\p{N}{1,3}", KANA, deepseek3(r"|[\r\n]|\s+(?!\S)|\s+"), r"\p{N}"],
    "afmoe": [r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))", ASIAN, deepseek3()],
    "falcon": [r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]"],
    "starcoder": [r"\p{N}", GPT2],
    "gpt-2": [GPT2],
    "chameleon": [
        "<sentinel:[0-9]+>", "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z", r"([\t\n]|    |  )", r"\p{N}",
        r"[\p{P}!-/:-@\[-`{-~]", GPT2,
    ],
    "bloom": [BLOOM],
    "viking": [BLOOM, r"\p{N}"],
    # What lies between numbers of three digits in the original, `(?=(\d{3})+(?!\d))`.
    "superbpe": [r"\p{N}+", r"\d{1,3}(?=(?:\d{3})*(?!\d))"],
}

PARTS = [
    "a", "b", "Z", "É", "é", "e\u0301", "\u0301", "ß", "ſ", "K", "ǅ", "ʰ", "ﬁ", "Ⅷ", "ª", "Ж", "ж", "א", "ع", "ก", "กำ", "ไ", "हि", "क्ष", "漢", "字", "〇",
    "あ", "ア", "ー", "ｱ", "한", "ㄱ", "ᄀ", "ㄅ", "'", "'s", "'S", "'ſ", "'T", "'re", "'Ll", "'D", "'m", "’s", "n't", "1", "12", "123", "1234567", "½", "²",
    "٣", "๓", "Ⅳ", "①", " ", "  ", "   ", "    ", "\t", "\n", "\n\n", "\r", "\r\n", "\u000b", "\u000c", "\u0085", "\u00a0", "\u1680", "\u2003", "\u2028",
    "\u3000", "\u200b", "\u200d", "\ufeff", "\u00ad", "\u0000", "\u007f", "\u001c", "!", "?", ".", ",", "...", "…", "。", "，", "、", "؟", "।", "¿", "-", "—",
    "_", "/", "//", "\\", "(", ")", "[", "]", "{", "}", "<", ">", "|", "$", "€", "+", "=", "^", "~", "`", "´", "°", "©", "🙂", "👩‍🚀", "🇫🇷", "\u20e3", "\ufe0f",
    "the", " The", "HTTPServer", "camelCase", "foo_bar", " word", "IMGIMGABZ", "<sentinel:12>", "\ue000",
]


def assigned():
    return [chr(n) for n in range(0x110000) if unicodedata.category(chr(n)) not in ("Cn", "Cs", "Co")]


def text(rng, characters):
    parts = rng.choices(PARTS, k=rng.randint(1, 24))
    # One in ten of any other kind.
    return "".join(rng.choice(characters) if rng.random() < 0.1 else part for part in parts)


def cut(patterns, string):
    words = [string]
    for pattern in patterns:
        words = [word for piece in words for word in isolated(pattern, piece)]
    return words


def isolated(pattern, string):
    at = 0
    for match in pattern.finditer(string):
        if at < match.start():
            yield string[at : match.start()]
        if match.start() < match.end():
            yield string[match.start() : match.end()]
        at = match.end()
    if at < len(string):
        yield string[at:]


def main():
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 70
    here = pathlib.Path(__file__).parent / "splits.json"
    path = pathlib.Path(sys.argv[2]) if len(sys.argv) > 2 else here
    rng, characters = random.Random(7), assigned()
    texts = [text(rng, characters) for _ in range(count)]
    lengths = {}
    for name, patterns in PATTERNS.items():
        compiled = [regex.compile(pattern) for pattern in patterns]
        lengths[name] = [" ".join(str(len(word)) for word in cut(compiled, string)) for string in texts]
    path.write_text(json.dumps({"texts": texts, "lengths": lengths}, ensure_ascii=False, indent=0) + "\n")


main()
