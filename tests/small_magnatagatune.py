"""Small copies of MagnaTagATune: a song in each of its folders, 52 tags, of which two are rare."""

from .small_datasets import sound_file, write_lines

FOLDERS = "0123456789abcdef"
FREQUENT = tuple(f"tag {number:02d}" for number in range(50))
RARE = ("a rare tag", "no voice")
TAGS = (RARE[0], *FREQUENT, RARE[1])  # as columns


def row_of(number, file, tags):
    return {"clip_id": str(number), "mp3_path": file, **{tag: str(int(tag in tags)) for tag in TAGS}}


def write_table(root, rows, columns=("clip_id", *TAGS, "mp3_path"), **options):
    write_lines(root / "annotations_final.csv", columns, rows, delimiter="\t", **options)


def write_magnatagatune(root):
    """Three clips of each song; the third has a rare tag alone, or none."""
    rows = []
    for number, folder in enumerate(FOLDERS):
        (root / folder).mkdir(parents=True)
        for clip in range(3):
            tags = {FREQUENT[(5 * (2 * number + clip) + i) % 50] for i in range(5)}
            if clip == 2:
                tags = {RARE[0]} if number == 0 else set()
            file = f"{folder}/band-album-{number:02d}-song-{29 * clip}-{29 * clip + 29}.mp3"
            rows.append(row_of(len(rows), file, tags))
            (root / file).write_bytes(sound_file("mp3", 16_000, len(rows)))
    write_table(root, rows)
    return rows
