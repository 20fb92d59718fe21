"""
Score sentence embeddings on the seven semantic textual similarity (STS) tasks, offline or from the Hub, compare
models, and draw the figures of the paper.

    python eval_sts.py MODEL [MODEL ...] [--sts_dir DIR] [--tasks STS12 ... STSB SICKR] [--output_dir OUT]
    python eval_sts.py MODEL [MODEL ...] --labelled FILE [--text_column text] [--label_column label] [--output_dir OUT]
    python eval_sts.py MODEL [MODEL ...] --retrieval FOLDER
    python eval_sts.py MODEL --explain "A sentence." "Another." [--output_dir OUT]

The setting is the one that SimCSE calls "all" (arXiv 2104.08821, appendix B): all subsets of a year are concatenated,
and their cosine similarities give one Spearman correlation, times 100.
"""

from sarcse.evaluation.command import main


if __name__ == "__main__":
    main()
