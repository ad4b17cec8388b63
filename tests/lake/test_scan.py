"""Where a listing is cut into batches. No Spark."""

from __future__ import annotations

from medspark.lake.scan import TOGETHER, Found, cuts_before
from medspark.slides.kind import SLIDES


def batches(uris: list[str], most: int, most_bytes: int = 1 << 40, together: object = SLIDES.together) -> list[list[str]]:
    found: list[list[Found]] = [[]]
    for uri in uris:
        one = Found(uri, 10, 0)
        if found[-1] and cuts_before(one, found[-1], sum(item.size for item in found[-1]), most, most_bytes, together):  # type: ignore[arg-type]
            found.append([])
        found[-1].append(one)
    return [[item.uri for item in batch] for batch in found]


def test_the_levels_of_a_dicom_slide_are_never_parted() -> None:
    for names in ("level{}.dcm", "LEVEL{}", "1.2.840.{}"):  # twelve files a slide, as the real pyramid has
        uris = [f"file:///data/slide{slide:02d}/" + names.format(level) for slide in range(30) for level in range(12)]
        cut = batches(uris, 50)
        assert [uri for batch in cut for uri in batch] == uris and max(map(len, cut)) == 60
        for batch in cut:
            assert len(batch) % 12 == 0 and len({uri.rsplit("/", 1)[0] for uri in batch}) == len(batch) // 12
    assert {len(batch) for batch in batches(uris, 1000, most_bytes=500)} == {60}


def test_files_that_stand_alone_fill_a_batch_and_no_more() -> None:
    slides = [f"file:///data/{number}.svs" for number in range(105)]
    assert list(map(len, batches(slides, 50))) == [50, 50, 5]
    assert list(map(len, batches(slides, 1000, most_bytes=300))) == [30, 30, 30, 15]
    assert list(map(len, batches([f"file:///data/{number}.dcm" for number in range(105)], 50, together=None))) == [50, 50, 5]


def test_a_folder_of_anything_is_cut_all_the_same() -> None:
    flat = [f"file:///data/{number}.dcm" for number in range(1000)]
    assert list(map(len, batches(flat, 10)))[:3] == [10 * TOGETHER] * 3
    assert max(map(len, batches(flat, 1000, most_bytes=100))) == 10 * TOGETHER
