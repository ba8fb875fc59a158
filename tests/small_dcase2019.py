"""Small copies of TAU Urban Acoustic Scenes 2019: ten scenes, a few locations of two clips each."""

from .small_datasets import sound_file, write_lines

SCENES = (  # as the publisher lists them
    "airport",
    "shopping_mall",
    "metro_station",
    "street_pedestrian",
    "public_square",
    "street_traffic",
    "tram",
    "bus",
    "metro",
    "park",
)
META_COLUMNS = ("filename", "scene_label", "identifier", "source_label")


def rows_of(clips_of, start=0):
    """Clips of each location: `clips_of` has (scene, city, split, clips)."""
    rows = []
    for location, (scene, city, split, clips) in enumerate(clips_of, start):
        for _ in range(clips):
            name = f"audio/{scene}-{city}-{location}-{len(rows)}-a.wav"
            row = {"filename": name, "scene_label": scene, "identifier": f"{city}-{location}"}
            rows.append({**row, "source_label": "a", "split": split})
    return rows


def write_tables(root, rows, **options):
    write_lines(root / "meta.csv", META_COLUMNS, rows, delimiter="\t", **options)
    for split, columns in (
        ("train", META_COLUMNS[:2]),
        ("evaluate", META_COLUMNS[:2]),
        ("test", META_COLUMNS[:1]),
    ):
        table = root / "evaluation_setup" / f"fold1_{split}.csv"
        of_split = [row for row in rows if row["split"] == ("evaluate" if split == "test" else split)]
        write_lines(table, columns, of_split, delimiter="\t", **options)


def write_dcase2019(root):
    """Its rows; each with its `split`, too."""
    train = [(scene, city, "train", 2) for scene in SCENES for city in ("lyon", "paris", "vienna")]
    test = [(scene, "milan", "evaluate", 1) for scene in SCENES]
    rows = rows_of([*train, *test, ("tram", "milan", "unused", 2)])
    write_tables(root, rows)
    (root / "audio").mkdir()
    for number, row in enumerate(rows):
        (root / row["filename"]).write_bytes(sound_file("wav", 48_000, number, channels=2))
    return rows
