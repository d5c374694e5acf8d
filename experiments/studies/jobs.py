"""What is run: commands of the studies, with the options that differ from their defaults."""

from dataclasses import dataclass

ALL = (
    "linear", "adamw", "adamw_decay", "ftp", "ftp_exact", "ftp_kappa0", "ftp_exact_kappa0", "tpgm", "wise", "wise_ftp",
)  # fmt: skip
FAMILY = (
    "adamw", "ftp", "l2sp", "l2sp_decoupled", "cautious", "spd", "maps", "digrap", "mars_sp", "mixout", "wise",
    "learned_wise", "lines", "model_stock", "hypergradient",
)  # fmt: skip
TWEETS = ("--weight-decay", "0", "--bf16")
LRS = ("--lrs", "6e-5", "2e-4", "6e-4", "2e-3", "6e-3")
#: What is compared where all methods would take too long, and where even these would.
CORE = (
    "--methods", "linear", "adamw", "adamw_warmup", "lp_ft", "ftp", "wise", "wise_ftp", "model_stock", "soup",
)  # fmt: skip
FEW = ("--methods", "linear", "adamw", "ftp", "wise", "wise_ftp")
HEADLINE = ("--methods", "linear", "adamw", "adamw_head", "ftp", "wise")
#: Files that have to be there: pip download --no-deps --no-binary :all: vaderSentiment
OPINIONS = ("--archive", "vaderSentiment-3.3.2.tar.gz", "--tweets", "300", "--test-tweets", "175")
#: npm pack @iconify-json/fluent-emoji-flat
FLUENT = ("--fluent", "iconify-json-fluent-emoji-flat-1.2.6.tgz")
AIRLINES = ("--test-tweets", "225")
BESIDE = ("adamw", "1.1e-4", "adamw", "3.5e-4")  # halfway to the rates beside AdamW's best one of 2e-4
WIDER = ("--wider", "ftp", "6e-5", "linear", "6e-2", *BESIDE)  # two choices were at an end of their grids
PLAIN = ("--weight-decay", "0")  # but for adamw_decay
TENTH = ("--radius-lrs", "0.1")
THREE = ("--seeds", "0", "1", "2")
WITHIN = (*THREE, "--within", "0", "1", "2")
PRODIGY = ("--methods", "prodigy", "ftp_prodigy", *WITHIN)
SIX = ("--methods", "prodigy", "dadapt", "ldog", "ldog_mean", "schedule_free", "ftp_prodigy", *WITHIN)
PROBED = ("--methods", "lp_ft", "--lrs")
NEWSPAPERS = ("--anchor", "opinions", "--domain", "newspapers", *OPINIONS)
UNSEEN = ("--seeds", "3", "4", "5")  # others than settings were chosen with; new splits of the same examples


@dataclass(frozen=True)
class Job:
    """One run, in a folder of its name."""

    name: str
    about: str
    module: str
    arguments: tuple[str, ...] = ()
    alone: bool = False  # measures time and memory: nothing else may run

    def command(self) -> str:
        """As one would type it."""
        return " ".join(("python -m", self.module, *self.arguments))


_CLASSIFY, _LANGUAGE = "experiments.classification", "experiments.language"
_TUNING, _META = "experiments.tuning", "experiments.meta"
_RATES, _SCENES = "experiments.sensitivity", "experiments.segmentation"

FULL = (
    Job("classification", "emoji in other styles, every method", _CLASSIFY,
        ("--method", *ALL, *LRS, *PLAIN, "--epochs", "6")),
    Job("family", "emoji in other styles, every way to stay near the anchor", _CLASSIFY,
        ("--method", *FAMILY, *LRS, *PLAIN, "--epochs", "6")),
    Job("language-muon", "FTP around Muon, of which a step costs as much as eight of AdamW", _LANGUAGE,
        ("--method", "adamw", "ftp", "muon", "ftp_muon", *TWEETS, "--lrs", "1e-4", "3e-4", "1e-3", "--tweets", "200")),
    *(
        Job(f"sensitivity-{name}", about, _RATES, ("--anchor", name.partition("-")[0], *options))
        for name, about, *options in (
            ("styles", "AdamW, FTP and others over the learning rate: emoji, from a model trained on them",
             *FLUENT, *CORE, "--wider", *BESIDE),
            ("imagenet", "the same from ImageNet's weights", *FLUENT, "--wider", "adamw", "3.5e-4", "adamw", "1.1e-3"),
            ("topics", "the same on tweets, from a model trained on them", *AIRLINES, *CORE,
             "--wider", "ftp", "6e-5", "ftp", "6e-2", "adamw", "3.5e-5", "adamw", "1.1e-4"),
            ("minilm", "the same from MiniLM as it comes", *AIRLINES, *FEW, "--wider", "linear", "6e-2", *BESIDE),
            ("cells", "the same on photographs of solar cells, from ImageNet's weights",
             "--wider", "adamw", "3.5e-4", "adamw", "1.1e-3"),
            ("cells-poly", "the same the other way round", "--domain", "poly", *FEW, "--wider", "ftp", "6e-5", *BESIDE),
            ("opinions", "the same on opinions about films and others, from MiniLM as it comes", *OPINIONS,
             "--wider", "ftp", "6e-5", "linear", "6e-2", "adamw", "3.5e-5", "adamw", "1.1e-4"),
            ("opinions-newspapers", "the same, fine-tuned on newspapers", "--domain", "newspapers", *OPINIONS, *FEW,
             *WIDER),
            ("opinions-tweets", "the same, fine-tuned on tweets", "--domain", "tweets", *OPINIONS, *FEW, *WIDER),
            ("opinions-products", "the same, fine-tuned on products", "--domain", "products", *OPINIONS, *FEW,
             *WIDER),
        )
    ),
    Job("sensitivity-scenes", "the same on scenes: which class every pixel shows, from a network trained on them",
        _SCENES, ("--wider", "ftp", "2e-4", "ftp", "6e-5", *BESIDE)),
    Job("sensitivity-scenes-imagenet", "the same from ImageNet's encoder and a new decoder", _SCENES,
        ("--anchor", "imagenet", *HEADLINE, "--lrs", "2e-4", "6e-4", "2e-3", "6e-3", "--wider", "adamw", "6e-5",
         "adamw", "1.1e-3", "adamw", "3.5e-3", "adamw_head", "6e-5", "ftp", "6e-4", "ftp", "2e-4")),
    *(
        Job(f"few-{name}", f"the same with a tenth of the labels: {about}", module,
            (*options, "--labels", "0.1", *HEADLINE))
        for name, about, module, *options in (
            ("scenes", "scenes", _SCENES),
            ("styles", "emoji, from a model trained on them", _RATES, *FLUENT),
            ("imagenet", "emoji, from ImageNet's weights", _RATES, "--anchor", "imagenet", *FLUENT),
        )
    ),
    *(
        Job(f"radius-{name}", about, f"{_RATES}.radius", ("--anchor", name.partition("-")[0], *options))
        for name, about, *options in (
            ("styles", "FTP by the rate of its radii: emoji, from a model trained on them", *FLUENT, *TENTH),
            ("imagenet", "the same from ImageNet's weights", *FLUENT),
            ("topics", "the same on tweets, from a model trained on them", *AIRLINES, *TENTH),
            ("minilm", "the same from MiniLM as it comes", *AIRLINES),
            ("cells", "the same on photographs of solar cells, from ImageNet's weights"),
            ("cells-poly", "the same the other way round", "--domain", "poly", *TENTH),
            ("opinions", "the same on opinions about films and others, from MiniLM as it comes", *OPINIONS, *TENTH),
            ("opinions-newspapers", "the same, fine-tuned on newspapers", "--domain", "newspapers", *OPINIONS, *TENTH),
            ("opinions-tweets", "the same, fine-tuned on tweets", "--domain", "tweets", *OPINIONS, *TENTH),
            ("opinions-products", "the same, fine-tuned on products", "--domain", "products", *OPINIONS, *TENTH),
        )
    ),
    *(
        Job(f"free-{name}", f"optimizers without a learning rate: {about}", f"{_RATES}.free",
            ("--anchor", name.partition("-")[0], *options))
        for name, about, *options in (
            ("styles", "emoji, from a model trained on them", *FLUENT, *PRODIGY),
            ("imagenet", "emoji, from ImageNet's weights", *FLUENT, *PRODIGY),
            ("topics", "tweets, from a model trained on them", *AIRLINES, *SIX),
            ("minilm", "tweets, from MiniLM as it comes", *AIRLINES, *SIX),
            ("cells", "solar cells, from ImageNet's weights", *PRODIGY),
            ("cells-poly", "the same the other way round", "--domain", "poly", *PRODIGY),
            ("opinions", "film reviews, from MiniLM as it comes", *OPINIONS, *WITHIN),
            ("opinions-newspapers", "newspapers", "--domain", "newspapers", *OPINIONS, *WITHIN),
            ("opinions-tweets", "tweets", "--domain", "tweets", *OPINIONS, *SIX),
            ("opinions-products", "product reviews", "--domain", "products", *OPINIONS, *SIX),
        )
    ),
    Job("drawn", "AdamW and FTP over the learning rate on drawn shapes, from ImageNet's weights", _RATES,
        ("--anchor", "drawn", "--methods", "adamw", "ftp", "--lrs", "6e-5", "2e-4", "--wider", "adamw", "6e-4",
         "adamw", "2e-3", *THREE)),
    Job("drawn-radius", "FTP by the rate of its radii on these", f"{_RATES}.radius",
        ("--anchor", "drawn", "--lrs", "6e-4", "--radius-lrs", "0.03", "0.1", "0.3")),
    Job("long-newspapers", "AdamW and FTP over the learning rate on newspapers, with four times the steps", _RATES,
        (*NEWSPAPERS, "--methods", "adamw", "ftp", "--lrs", "6e-5", "2e-4", "--wider", "adamw", "3.5e-5", "adamw",
         "1.1e-4", "ftp", "2e-4", "adamw", "2e-5", "ftp", "6e-5", "adamw", "1.1e-5", "ftp", "6e-3", "--epochs", "8",
         *THREE)),
    *(
        Job(f"{name}-imagenet", f"the same on emoji, from ImageNet's weights, with {times} times the steps", _RATES,
            ("--anchor", "imagenet", *FLUENT, "--methods", "adamw", "ftp", "--lrs", "6e-5", "2e-4", "--wider", "adamw",
             "1.1e-4", "adamw", "6e-4", "ftp", "2e-4", "adamw", "1.1e-3", *wider, "--epochs", epochs, *THREE))
        for name, times, epochs, *wider in (("long", "four", "20"), ("longer", "sixteen", "80", "ftp", "6e-5"))
    ),
    Job("longer-newspapers", "the same on newspapers, with sixteen times the steps", _RATES,
        (*NEWSPAPERS, "--methods", "adamw", "ftp", "--lrs", "6e-6", "2e-5", "6e-5", "--wider", "adamw", "1.1e-5",
         "--epochs", "32", *THREE)),
    Job("free-long-newspapers", "FTP around Prodigy on newspapers, with four times the steps", f"{_RATES}.free",
        (*NEWSPAPERS, "--methods", "ftp_prodigy", "--epochs", "8", *WITHIN)),
    *(
        Job(f"lp-ft-{name}", f"LP-FT over the learning rate: {about}", f"{_RATES}.radius",
            (*options, *PROBED, *lower, "6e-5", "2e-4", "3.5e-4"))
        for name, about, lower, *options in (
            ("minilm", "tweets, from MiniLM as it comes", (), "--anchor", "minilm", *AIRLINES),
            ("opinions-newspapers", "newspapers", ("2e-5",), *NEWSPAPERS),
            ("opinions-tweets", "tweets", (), "--anchor", "opinions", "--domain", "tweets", *OPINIONS),
            ("opinions-products", "product reviews", (), "--anchor", "opinions", "--domain", "products", *OPINIONS),
        )
    ),
    *(
        Job(f"head-{name}", f"AdamW with a faster head over the learning rate: {about}", f"{_RATES}.radius",
            (*options, "--methods", "adamw_head", "--lrs", *lower, "6e-5", "2e-4", "3.5e-4"))
        for name, about, lower, *options in (
            ("minilm", "tweets, from MiniLM as it comes", (), "--anchor", "minilm", *AIRLINES),
            ("opinions-newspapers", "newspapers", ("2e-5",), *NEWSPAPERS),
            ("opinions-tweets", "tweets", (), "--anchor", "opinions", "--domain", "tweets", *OPINIONS),
            ("opinions-products", "product reviews", (), "--anchor", "opinions", "--domain", "products", *OPINIONS),
        )
    ),
    Job("search", "hypergradients against search, for 1 to 10,000 hyperparameters", f"{_TUNING}.search", UNSEEN, True),
    Job("towers", "towers of optimizers from learning rates over seven decades", f"{_TUNING}.towers", UNSEEN, True),
    Job("hypergradients", "FTP's one-step derivatives in the radii against full ones", "experiments.hypergradients"),
    Job("continual", "ten tasks of new classes in sequence: what each method forgets", "experiments.continual"),
    Job("few-labels", "a hundred labels of the domain that counts: learned weights and simple ways",
        f"{_META}.few_labels"),
    Job("few-labels-ten", "nine of its methods on ten splits", f"{_META}.few_labels",
        ("--tasks", "newspapers", "tweets", "poly", "--methods", "labels", "add", "tenth_then", "optuna", "then_ftp",
         "tenth_then_ftp", "learned", "learned_then", "learned_then_ftp", "--seeds", *map(str, range(10)))),
    Job("few-labels-newspapers", "three of its methods, also with 25 and 200 labels", f"{_META}.few_labels",
        ("--tasks", "newspapers", "--methods", "add", "then_labels", "learned", "--counts", "25", "200")),
    Job("few-labels-cells", "five of its methods, also with 25 and 200 labels", f"{_META}.few_labels",
        ("--tasks", "poly", "--methods", "add", "then_labels", "then_ftp", "learned", "learned_then",
         "--counts", "25", "200")),
)  # fmt: skip

FAST = (
    Job("classification", "emoji in other styles, AdamW and FTP", _CLASSIFY, ("--fast",), alone=True),
    Job("language", "sentiment of tweets, AdamW and FTP", _LANGUAGE, ("--fast",), alone=True),
    Job("sensitivity-imagenet", "AdamW, FTP and WiSE-FT at two learning rates", _RATES, ("--fast",)),
    Job("sensitivity-scenes", "AdamW and FTP at two learning rates, on scenes", _SCENES, ("--fast",)),
    *(Job(job.name, job.about, job.module, ("--fast",)) for job in FULL
      if job.module.startswith((_TUNING, _META, "experiments.continual", "experiments.hypergradients"))
      and not job.name.startswith("few-labels-")),
)  # fmt: skip
