"""Text in other scripts, with the kind of tokenizer that multilingual encoders have, from the file to a release."""

import itertools

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerFast, XLMRobertaConfig, XLMRobertaModel

from .conftest import PROJECT, SMALL, flags, random_encoder, run_command, run_python


# Subjects and predicates. Japanese and Thai have no spaces between words; Arabic and Hebrew run from right to left.
PARTS = {
    "ja": (
        ["猫が", "子供が", "銀行が", "電車が", "先生が"],
        ["眠っている。", "遅れている。", "新しくなった。"],
    ),
    "th": (["แมว", "เด็ก", "ธนาคาร", "รถไฟ", "ครู"], ["กำลังนอนหลับ", "มาสาย", "เปิดใหม่", "ถูกพบแล้ว"]),
    "ar": (
        ["القطة", "الطفل", "البنك", "القطار", "المعلم"],
        [" نائم الآن.", " متأخر اليوم.", " جديد هنا."],
    ),
    "he": (["החתול", "הילד", "הבנק", "הרכבת", "המורה"], [" ישן עכשיו.", " מאחר היום.", " חדש כאן.", " בעיר."]),
    "hi": (["बिल्ली", "बच्चा", "बैंक", "रेलगाड़ी", "शिक्षक"], [" सो रही है।", " देर से आई।", " नया है।", " शहर में है।"]),
    "ru": (["Кошка", "Ребёнок", "Банк", "Поезд", "Учитель"], [" спит.", " опаздывает.", " уже здесь.", " в городе."]),
    "el": (["Η γάτα", "Το παιδί", "Η τράπεζα", "Το τρένο", "Ο δάσκαλος"], [" κοιμάται.", " αργεί.", " είναι εδώ."]),
    "en": (
        ["The cat", "The child", "The bank", "The train", "The teacher"],
        [" sleeps.", " is late. 🙂"],
    ),
}
TEXTS = ["".join(pair) for subjects, predicates in PARTS.values() for pair in itertools.product(subjects, predicates)]


def multilingual_tokenizer() -> PreTrainedTokenizerFast:
    """As XLM-R's: pieces of a unigram model, with a mark where a word begins, and no alphabet of its own."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.UnigramTrainer(vocab_size=400, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    names = {
        "bos_token": "<s>",
        "pad_token": "<pad>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "mask_token": "<mask>",
    }
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=64, cls_token="<s>", sep_token="</s>", **names
    )


def test_other_scripts_are_trained_on_searched_and_released(tmp_path):
    """The weights come from the training text: the English that comes with the program has few of its tokens."""
    tokenizer = multilingual_tokenizer()
    sizes = {**SMALL, "vocab_size": len(tokenizer), "max_position_embeddings": 66}
    config = XLMRobertaConfig(**sizes, bos_token_id=0, pad_token_id=1, eos_token_id=2)
    encoder = random_encoder(tmp_path / "encoder", XLMRobertaModel(config), tokenizer)
    file = tmp_path / "texts.csv"
    file.write_text("text,language\n" + "".join(f"{text},x\n" for text in TEXTS), encoding="utf-8")
    fields = {"model_name_or_path": encoder, "train_file": file, "eval_pairs": None, "max_train_samples": None}
    trained = run_command(
        PROJECT / "train.py", *flags("model", **fields, token_frequencies="corpus", max_steps=4), cwd=tmp_path
    )
    assert trained.returncode == 0, trained.stderr
    found = run_command("-m", "sarcse", "search", "model", file, TEXTS[0], "--top", "1", cwd=tmp_path)
    assert found.returncode == 0 and TEXTS[0] in found.stdout, found.stderr
    options = ["--release_dir", "release", "--license", "mit", "--language", *(set(PARTS) - {"en"}), "--onnx_int8"]
    options += ["--pairs", PROJECT / "demo" / "sts.tsv"]
    released = run_python("-m", "model_card", tmp_path / "model", *options, cwd=tmp_path, PYTHONPATH=str(PROJECT))
    assert released.returncode == 0 and "Built and verified: release" in released.stdout, released.stderr
    own = AutoTokenizer.from_pretrained(tmp_path / "release")
    model = AutoModel.from_pretrained(tmp_path / "release", trust_remote_code=True)
    batch = own(TEXTS, padding=True, return_tensors="pt")
    embeddings = model(**batch).pooler_output.detach().numpy()
    assert np.isfinite(embeddings).all() and len(np.unique(embeddings.round(5), axis=0)) == len(TEXTS)
    assert own.unk_token_id not in batch["input_ids"]
