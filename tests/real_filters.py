"""datatrove's four filters as its users run them, with the settings that quality.rules_of states: what decisions are compared with."""

from collections.abc import Callable
from typing import Any


def filters(language: str) -> list[Callable[[Any], Any]]:
    """Repetition, quality, C4, FineWeb: `filter(document)` of each. Chinese: FineWeb2's settings for cmn_Hani, C4 without what counts words and sentences."""
    from datatrove.pipeline.filters import C4QualityFilter, FineWebQualityFilter, GopherQualityFilter, GopherRepetitionFilter

    from tasks.corpus.quality import CHINESE_STOP_WORDS

    if language != "zh":
        return [
            GopherRepetitionFilter(language=language).filter,
            GopherQualityFilter(language=language, **({} if language == "en" else {"min_stop_words": 0})).filter,
            C4QualityFilter(filter_no_terminal_punct=False, language=language).filter,
            FineWebQualityFilter(language=language).filter,
        ]
    han: Any = "cmn_Hani"
    return [
        GopherRepetitionFilter(
            dup_line_frac=0.287, dup_para_frac=0, dup_line_char_frac=0, dup_para_char_frac=0, top_n_grams=((2, 0.256), (3, 0.201), (4, 0.171)),
            dup_n_grams=((5, 0.198), (6, 0.182), (7, 0.167), (8, 0.154), (9, 0.14), (10, 0.127)), language=han,
        ).filter,
        GopherQualityFilter(
            min_avg_word_length=1, max_avg_word_length=5, max_non_alpha_words_ratio=0.735, stop_words=list(CHINESE_STOP_WORDS), language=han
        ).filter,
        C4QualityFilter(filter_no_terminal_punct=False, min_words_per_line=-1, min_num_sentences=-1, max_word_length=-1, language=han).filter,
        FineWebQualityFilter(line_punct_thr=0.106, short_line_thr=999, char_duplicates_ratio=0.1, new_line_ratio=0.178, language=han).filter,
    ]  # fmt: skip
