from __future__ import annotations

import math

import pandas as pd

from pipeline_steps.evidence.names import WORST_TO_BEST, Names
from pipeline_steps.evidence.report.findings import (
    error_sentences,
    group_sentences,
    likeness_sentences,
    order_claims,
    order_sentences,
    recognition_sentences,
)
from pipeline_steps.evidence.report.page import count_images
from pipeline_steps.evidence.scores.groups import COMPARED
from pipeline_steps.evidence.tables.table import Estimate

ORDER = ("dreambooth", "portraitbooth", "idbooth")


def identity(fdr: dict[str, float], prompts: str = "base", half_width: float = 0.5) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "base_model": "sd21",
                "method": method,
                "prompts": prompts,
                "versus": "real",
                "recogniser": "arcface_r100",
                "fdr": value,
                "fdr_low": value - half_width,
                "fdr_high": value + half_width,
                "eer": 0.5 if method == "untuned" else 0.3 - value / 100,
                "eer_low": 0.4 if method == "untuned" else 0.2,
                "eer_high": 0.6 if method == "untuned" else 0.35,
            }
            for method, value in fdr.items()
        ]
    )


def comparison(low: float, high: float) -> pd.DataFrame:
    row = {"base_model": "sd21", "prompts": "base", "versus": "real", "metric": "fdr"}
    names = {"recogniser": "arcface_r100", "method": "idbooth", "minus_method": "dreambooth"}
    return pd.DataFrame([row | names | {"difference": 2.0, "low": low, "high": high}])


RISING = {"untuned": 0.0, "idbooth": 4.0, "portraitbooth": 3.0, "dreambooth": 2.0}
FALLING = {"idbooth": 3.0, "portraitbooth": 4.0, "dreambooth": 2.0}


def test_the_order_is_judged_on_the_numbers() -> None:
    (rising,) = order_claims(identity(RISING), pd.DataFrame(), ORDER, Names())
    assert rising.holds
    assert [name for name, _ in rising.ratios] == ["DreamBooth", "PortraitBooth", "ID-Booth"]
    assert rising.setting == ("real", "SD-2.1", "Base", "ArcFace r100")
    (falling,) = order_claims(identity(FALLING), pd.DataFrame(), ORDER, Names())
    assert not falling.holds
    equal = {"idbooth": 2.0, "portraitbooth": 2.0, "dreambooth": 2.0}
    assert not order_claims(identity(equal), pd.DataFrame(), ORDER, Names())[0].holds


def test_overlap_of_the_outer_intervals() -> None:
    (apart,) = order_claims(identity(RISING, half_width=0.9), pd.DataFrame(), ORDER, Names())
    (touching,) = order_claims(identity(RISING, half_width=1.1), pd.DataFrame(), ORDER, Names())
    assert (apart.overlap, touching.overlap) == (False, True)
    (none,) = order_claims(identity(RISING, half_width=math.nan), pd.DataFrame(), ORDER, Names())
    assert none.overlap is None


def test_the_paired_difference_is_that_of_the_outer_methods() -> None:
    (claim,) = order_claims(identity(RISING), comparison(0.1, 3.0), ORDER, Names())
    assert claim.difference == Estimate(2.0, 0.1, 3.0)
    assert order_claims(identity(RISING), pd.DataFrame(), ORDER, Names())[0].difference is None


def test_sentences_count_what_holds() -> None:
    frame = pd.concat([identity(RISING), identity(FALLING, prompts="complex")])
    claims = order_claims(frame, comparison(0.1, 3.0), ORDER, Names())
    first, second, third = order_sentences(claims, Names())
    assert first.endswith("DreamBooth < PortraitBooth < ID-Booth, holds in 1 of 2 comparisons.")
    assert second == "The separate intervals of DreamBooth and ID-Booth overlap in 1 of 2."
    assert "ID-Booth separates identities better than DreamBooth beyond chance in 1 of 2" in third
    assert order_sentences([], Names()) == []


def test_error_rates_name_the_best_method_and_chance() -> None:
    (sentence,) = error_sentences(identity(RISING), Names())
    assert "0.260 [0.200, 0.350] (ID-Booth)" in sentence
    assert "untuned 0.500 [0.400, 0.600], not told apart from chance" in sentence


def recognition(base: str, method: str, accuracy: float) -> list[dict]:
    names = {"base_model": base, "method": method, "prompts": "base" if method != "-" else "-"}
    return [
        names
        | {"seed": s, "role": role, "benchmark": b, "accuracy": a}
        | {"low": a - 0.03, "high": a + 0.03}
        for s in (0, 1)
        for role, b, a in (
            ("validation", "lfw", 0.99),
            ("test", "x", accuracy),
            ("test", "y", accuracy),
        )
    ]


def test_recognition_compares_photographs_and_best_synthetic_set_with_chance() -> None:
    rows = recognition("real", "-", 0.51) + recognition("sd21", "idbooth", 0.60)
    frame = pd.DataFrame(rows + recognition("sd21", "dreambooth", 0.49))
    real, best = recognition_sentences(frame, Names())
    assert "the photographs (Real)" in real
    # The validation benchmark is no test; two of +-0.03 each have +-0.03 / sqrt(2) together, and
    # seeds, which meet the same pairs, take nothing off that.
    assert "0.510 [0.489, 0.531]" in real
    assert "not told apart from chance" in real
    assert "SD-2.1 ID-Booth, Base prompts, 0.600 [" in best
    assert "better than chance (0.5); 1 of 2 synthetic sets" in best


def test_photographs_with_images_are_no_synthetic_training_set() -> None:
    rows = recognition("real", "-", 0.51) + recognition("real+sd21", "idbooth", 0.93)
    frame = pd.DataFrame(rows + recognition("sd21", "idbooth", 0.52))
    _, both, best = recognition_sentences(frame, Names())
    assert "photographs and images" in both and "0.930" in both
    assert best.startswith("Best synthetic training set: SD-2.1 ID-Booth") and "0.520" in best
    assert "of 1 synthetic sets" in best


def test_a_group_without_a_face_is_told_as_the_furthest() -> None:
    of = {"base_model": "sd21", "method": "idbooth", "prompts": "base", "note": ""}
    rows: list[dict] = [
        of | {"recogniser": "judge", "by": "gender", "group": group, "faces": faces, "eer": eer}
        for group, faces, eer in (("F", 1.0, 0.1), ("M", 0.0, math.nan))
    ]
    limits = {"faces_low": 0.0, "faces_high": 0.4}
    ratios = of | {"recogniser": "judge", "by": "gender", "group": WORST_TO_BEST, "faces": 0.0}
    frame = pd.DataFrame([*rows, ratios | limits | {"note": "beyond chance: faces"}])
    for key in COMPARED:
        for name in (key, f"{key.removesuffix('_mean')}_low", f"{key.removesuffix('_mean')}_high"):
            frame[name] = frame.get(name, math.nan)
    (sentence,) = group_sentences(frame, Names())
    assert "share of images with a face of M over F" in sentence
    assert "in 1 of 1 sets" in sentence


def test_reasons_are_counted_most_frequent_first() -> None:
    manifest = pd.DataFrame(
        {
            "kept": [True, False, False, False, False],
            "reason": ["", "truncated", "no face", "no face", None],
        }
    )
    count = count_images("generated", "x", manifest)
    assert (count.images, count.kept) == (5, 1)
    assert count.reasons == "no face (2), no reason given (1), truncated (1)"


def test_prompts_shown_and_nearness_to_photographs_are_told_in_their_own_direction() -> None:
    frame = identity({"untuned": 0.0, "idbooth": 4.0, "id3": 3.0})
    frame["prompt_score"] = [0.9, 0.7, 0.8]
    frame["reference_distance"] = [0.95, 0.4, 0.5]
    frame["psnr"], frame["ssim"] = [14.0, 15.25, 13.0], [0.3, 0.4, 0.2]
    twice = pd.concat([frame.assign(reference=name) for name in ("real", "wild")])
    frames = {"quality": twice, "identity": frame, "audit": frame}
    assert likeness_sentences(frames, Names()) == [
        "SD-2.1, Base prompts: what prompts ask for is shown best by ID³, prompt score 0.80, "
        "untuned 0.90.",
        "SD-2.1, Base prompts, ArcFace r100: nearest to the photographs is ID-Booth, distance "
        "0.40, untuned 0.95.",
        "SD-2.1, Base prompts: pixels come closest to a photograph by ID-Booth, PSNR 15.2 dB, "
        "untuned 14.0, SSIM 0.40.",
    ]
