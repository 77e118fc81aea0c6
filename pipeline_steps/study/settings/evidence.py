"""Settings of the score step: which extractor feeds which metric, and the metrics' constants."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from pipeline_steps.study.settings.base import Section

SCORE_KINDS = ("quality", "identity", "pose")


class QualitySettings(Section):
    """Set metrics against the reference sets (the paper's Table 1)."""

    frechet_extractor: str = Field(
        default="inception_v3",
        description="Features of the Fréchet distance and of the kernel distance. Only with "
        "inception_v3 are they the FID and the KID.",
    )
    cmmd_extractor: str = Field(default="clip_l14_336", description="Features of the CMMD.")
    prdc_extractor: str = Field(
        default="inception_v3",
        description="Features of precision, recall, density, coverage, Vendi score and AuthPct.",
    )
    face_quality_extractor: str = Field(
        default="crfiqa", description="Predictor of the face image quality, one number per image."
    )
    prompt_extractor: str | None = Field(
        default="clip_prompts",
        description="What reads from generated images whether they show what their prompts ask "
        "for; null: no prompt score.",
    )
    k: int = Field(
        default=3,
        ge=1,
        description="Neighbours that span a manifold; 3 in Kynkäänniemi et al., 5 in FG 2025.",
    )
    cmmd_sigma: float = Field(
        default=10.0,
        gt=0,
        description="Bandwidth of the CMMD's Gaussian kernel, on features of length 1 (Jayasumana "
        "et al., CVPR 2024).",
    )
    cmmd_scale: float = Field(
        default=1000.0, gt=0, description="Factor by which the CMMD is multiplied, as published."
    )
    kd_subsets: int = Field(
        default=100, ge=1, description="Subsets over which the kernel distance is averaged."
    )
    kd_subset_size: int = Field(
        default=1000,
        ge=2,
        description="Images of either set in such a subset; smaller sets are taken whole.",
    )
    fd_infinity: bool = Field(
        default=False,
        description="Extrapolate the Fréchet distance to infinitely many images (column fd_inf); "
        "costs 15 distances, and means something only with more images than features.",
    )
    equal_n: bool = Field(
        default=True,
        description="Compare sets of equal size by a seeded draw from the larger one; the Fréchet "
        "distance depends on n.",
    )
    max_images: int | None = Field(
        default=None,
        ge=2,
        description="At most so many images of each set, which makes variants comparable that lost "
        "different numbers of faces; null: all.",
    )
    replicates: int = Field(
        default=50,
        ge=0,
        description="Interval of the Fréchet distance: people are left out one by one, or in so "
        "many groups where there are more of them. Each costs one distance; 0: no interval.",
    )
    confidence: float = Field(default=0.95, gt=0, lt=1, description="Level of the intervals.")


class IdentitySettings(Section):
    """Genuine and impostor similarity (the paper's Table 2)."""

    recognisers: tuple[str, ...] = Field(
        default=("arcface_r100",),
        min_length=1,
        description="Recognisers that judge, one row each. Name an independent one beside the one "
        "used in training: a judge that trained the images is no neutral judge.",
    )
    impostors: Literal["all", "equal"] = Field(
        default="all",
        description="Impostor pairs: all of them, or as many as genuine ones by a seeded draw. The "
        "paper draws; all pairs estimate the same numbers without the draw's noise.",
    )
    replicates: int = Field(
        default=1000,
        ge=0,
        description="Bootstrap replicates over identities, for intervals of the differences "
        "between methods; 0: none.",
    )
    confidence: float = Field(default=0.95, gt=0, lt=1, description="Level of the intervals.")


class PoseSettings(Section):
    """Spread of the head pose."""

    extractor: str = Field(default="sixdrepnet", description="Estimator of pitch, yaw and roll.")


class ScoreSettings(Section):
    """How sets of images are scored; one part per kind of score."""

    quality: QualitySettings = Field(default=QualitySettings(), description="Kind quality.")
    identity: IdentitySettings = Field(default=IdentitySettings(), description="Kind identity.")
    pose: PoseSettings = Field(default=PoseSettings(), description="Kind pose.")

    def extractors(self, kind: str, *, prompted: bool = True) -> tuple[str, ...]:
        """Names of the extractors whose features one of ``SCORE_KINDS`` needs, each once.

        Args:
            kind: One of them.
            prompted: Whether the images were made from prompts.
        """
        quality = self.quality
        names = {
            "quality": (
                quality.frechet_extractor,
                quality.cmmd_extractor,
                quality.prdc_extractor,
                quality.face_quality_extractor,
                *([quality.prompt_extractor] if prompted and quality.prompt_extractor else []),
            ),
            "identity": self.identity.recognisers,
            "pose": (self.pose.extractor,),
        }[kind]
        return tuple(dict.fromkeys(names))


class FeaturesSettings(Section):
    """Which extractors run follows from the scores; their options stand with their weights."""

    check_colour: bool = Field(
        default=True,
        description="Refuse sets of faces that are mostly bluer than red, which are BGR images "
        "taken as RGB. False only where the light really was blue.",
    )


class AuditSettings(Section):
    """When a generated image, or a whole identity, counts as somebody else's or as a copy."""

    recogniser: str | None = Field(
        default=None,
        description="Recogniser that judges, by its name in config/models.yaml; null: the last of "
        "score.identity.recognisers, where the independent one belongs.",
    )
    fmr: float = Field(
        default=0.001,
        gt=0,
        lt=1,
        description="False match rate among the photographs at which two images count as one "
        "person.",
    )
    search_rate: float = Field(
        default=0.01,
        gt=0,
        lt=1,
        description="Share of the photographs that may resemble anybody in the in-the-wild set: "
        "the larger that set, the more often somebody in it looks alike by chance.",
    )
    copy_ratio: float = Field(
        default=0.7,
        gt=0,
        lt=1,
        description="A near copy is closer to a photograph, in pixels, than this share of the "
        "distance of two different photographs of one person that are hardly ever closer.",
    )
    pairs: int = Field(
        default=6, ge=1, le=50, description="Image pairs shown per check, the most suspicious ones."
    )
    labels: dict[str, str] = Field(
        default_factory=dict,
        description="Display names beside the built-in ones, e.g. real: TFD, wild: FFHQ.",
    )


class GroupsSettings(Section):
    """Between which groups of people errors are compared."""

    by: tuple[str, ...] = Field(
        default=("gender", "skin_tone"),
        description="What groups share: gender, skin_tone (of the photographs, in six classes), or "
        "further columns of prepare.gender_table, such as age bands.",
    )
    skin_tone: str = Field(
        default="skin_tone",
        description="Extractor of the skin tone, by its name in config/models.yaml.",
    )
    min_people: int = Field(
        default=10,
        ge=3,
        description="Groups of fewer people are listed without numbers: these would tell of single "
        "persons.",
    )
    fmr: float = Field(
        default=0.001,
        gt=0,
        lt=1,
        description="False match rate of everybody together whose threshold all groups are held "
        "against.",
    )
    confidence: float = Field(default=0.95, gt=0, lt=1, description="Level of the intervals.")


class TablesSettings(Section):
    """How the tables are presented; the numbers come from the score and verify steps."""

    labels: dict[str, str] = Field(
        default_factory=dict,
        description="Display names beside the built-in ones, e.g. real: TFD, wild: FFHQ.",
    )
    intervals: bool = Field(
        default=False,
        description="Print confidence intervals into the Markdown and LaTeX tables; the paper's "
        "tables have none. The CSV files always hold them.",
    )
    confidence: float = Field(
        default=0.95, gt=0, lt=1, description="Level of the intervals of differences."
    )
    allow_mixed_versions: bool = Field(
        default=False,
        description="Make tables of results that one step made with two versions of a computing "
        "library, as after an upgrade in mid-study. Report and check_study say so in any case.",
    )


class FiguresSettings(Section):
    """What the figures show and how large they are."""

    labels: dict[str, str] = Field(
        default_factory=dict,
        description="Display names beside the built-in ones, e.g. real: TFD, wild: FFHQ.",
    )
    colours: dict[str, str] = Field(
        default_factory=dict,
        description="Colour per method beside the built-in ones, which are told apart with any "
        "colour vision (Okabe and Ito, 2008).",
    )
    width: float = Field(
        default=5.5, gt=2, le=12, description="Width in inches; 5.5 is the paper's text width."
    )
    dpi: int = Field(default=200, ge=72, le=600, description="Resolution of the PNG files.")
    bins: int = Field(default=40, ge=10, le=400, description="Bins of the distributions.")
    impostors: Literal["all", "equal"] = Field(
        default="all",
        description="Impostor pairs: all of them, or as many as genuine ones by a seeded draw. The "
        "paper draws; all pairs estimate the same numbers without the draw's noise.",
    )
    identities: tuple[str, ...] = Field(
        default=(),
        description="Identities to show, in this order; empty: the first ones in natural order, so "
        "that nobody picks the prettiest.",
    )
    prompts: str = Field(
        default="complex",
        description="Prompt set that the image grids show; where a study has it not, its last one.",
    )
    samples_identities: int = Field(
        default=1, ge=1, le=4, description="Identities in the figure of samples by method."
    )
    samples_columns: int = Field(
        default=6, ge=1, le=12, description="Images per row in the figure of samples by method."
    )
    recogniser: str | None = Field(
        default=None,
        description="Recogniser of all similarities shown, by its name in config/models.yaml; "
        "null: the last of score.identity.recognisers, where the independent one belongs.",
    )
    attributes: dict[str, str] = Field(
        default_factory=dict,
        description="What prompts may name beside the built-in expression, place and view: name to "
        "a regular expression whose group is the value; the figure of attributes has a part for "
        "each.",
    )
    overview_method: str = Field(
        default="idbooth", description="Method of the overview; where absent, the study's last one."
    )
    overview_identities: int = Field(default=6, ge=1, le=12, description="Rows of the overview.")
    overview_columns: int = Field(
        default=6, ge=1, le=12, description="Generated images per row of the overview."
    )


class ReportSettings(Section):
    """What the report says beside the numbers."""

    title: str = Field(
        default="Synthetic faces of consenting people", description="Headline of the page."
    )
    labels: dict[str, str] = Field(
        default_factory=dict,
        description="Display names beside the built-in ones, e.g. real: TFD, wild: FFHQ.",
    )
    expected_order: tuple[str, ...] = Field(
        default=("dreambooth", "portraitbooth", "idbooth"),
        min_length=2,
        description="Methods in the order of rising Fisher ratio that the paper reports; the page "
        "says where it holds.",
    )


class ExploreSettings(Section):
    """The page to look through all images."""

    labels: dict[str, str] = Field(
        default_factory=dict,
        description="Display names beside the built-in ones, e.g. real: TFD, wild: FFHQ.",
    )
    images: int = Field(
        default=20_000,
        ge=1,
        description="Images of each set at most, the first people's; the page tells of how many.",
    )
    thumbnail: int = Field(
        default=128, ge=32, le=512, description="Side of a thumbnail, pixels; smaller images stay."
    )


class ExportSettings(Section):
    """The dataset that is passed on: which images, in which layout, under which terms."""

    images: Literal["aligned", "samples"] = Field(
        default="aligned",
        description="aligned: faces on the 112x112 template, which recognisers train on; samples: "
        "the generated images in full, those in which a face was found.",
    )
    layout: Literal["folders", "reference", "webdataset", "parquet", "rec"] = Field(
        default="folders",
        description="folders: images/<identity>/<index>; reference: <identity>/<index>, as the "
        "paper's public code reads datasets; webdataset: tar shards of images and JSON; parquet: "
        "as Hugging Face's datasets opens it; rec: as InsightFace reads it, aligned images alone.",
    )
    image_format: Literal["png", "jpg"] = Field(
        default="png", description="png is lossless; jpg is of quality 95, without subsampling."
    )
    images_per_shard: int = Field(
        default=10_000, ge=1, description="Images per file of the layouts webdataset and parquet."
    )
    title: str = Field(default="", description="Headline of the card; empty: what the set is.")
    training_people: str = Field(
        default="",
        description="Whose photographs the generator of people who do not exist was trained on, "
        "and on what terms: a sentence for the card, without which such a set is not exported.",
    )
    licence: str = Field(
        default="",
        description="Licence of the dataset, an SPDX identifier or 'other'; empty: not stated yet. "
        "It cannot allow more than the photographs' terms and the weights' licences do.",
    )
    contact: str = Field(
        default="", description="Whom subjects and users write to, e.g. to withdraw; for the card."
    )

    @model_validator(mode="after")
    def _fits(self) -> ExportSettings:
        if self.layout == "rec" and self.images != "aligned":
            raise ValueError("layout: rec holds aligned faces; choose images: aligned, or parquet")
        return self


class EvidenceSections(Section):
    """Evidence: features, scores and audit; what is shown and passed on."""

    features: FeaturesSettings = Field(default=FeaturesSettings())
    score: ScoreSettings = Field(default=ScoreSettings())
    audit: AuditSettings = Field(default=AuditSettings())
    groups: GroupsSettings = Field(default=GroupsSettings())
    tables: TablesSettings = Field(default=TablesSettings())
    figures: FiguresSettings = Field(default=FiguresSettings())
    report: ReportSettings = Field(default=ReportSettings())
    explore: ExploreSettings = Field(default=ExploreSettings())
    export: ExportSettings = Field(default=ExportSettings())
