"""DICOMweb against a real server on loopback: what it lists, what it brings under faults, who gets the token, and what the lake then holds."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from pydicom.data import get_testdata_file

from medspark import config
from medspark.errors import BadRequest, Rejected, Unavailable
from medspark.lake import dicomweb, scan
from medspark.lake.dicomweb import Client, brought
from medspark.lake.scan import walk
from medspark.series.dicomweb import TOKEN as VARIABLE
from medspark.series.dicomweb import Access, parse
from tests.lake import harness
from tests.lake.dicomweb_server import Server, serving
from tests.phantoms import series as phantoms
from tests.real import ROOT as REAL

QUICK = Access(pause_s=0.01, attempts=4, timeout_s=5.0, page=3)
SETTINGS = ["dicomweb.pause_s=0.01", "dicomweb.attempts=3", "dicomweb.page=4", "dicomweb.timeout_s=5.0"]
BY_ADDRESS = ("source_id", "uri", "modified_at", "file_token", "folder_token")
TOKEN = "secret-token-of-the-test"


def real_files() -> list[Path]:
    """A gantry-tilted head CT where the collection is present, else files that come with pydicom."""
    folder = REAL / "ct" / "ge_head_tilt"
    if folder.exists():
        return sorted(folder.glob("*.dcm"))
    return [Path(get_testdata_file(name)) for name in ("CT_small.dcm", "MR_small.dcm")]


@pytest.fixture
def phantom(tmp_path: Path) -> list[Path]:
    one = phantoms.write_series(tmp_path / "one", [0, 2, 4, 6, 8])
    two = phantoms.write_series(tmp_path / "two", [0, 3], SeriesInstanceUID=phantoms.ROOT + "22", SOPInstanceUID=("8.1", "8.2"))
    return sorted([*one.glob("*.dcm"), *two.glob("*.dcm")])


def fetched(server: Server, path: str, access: Access = QUICK) -> bytes:
    client = Client(access)
    target = parse(server.uri + path)
    with tempfile.NamedTemporaryFile() as file:
        client.fetch(target, file.name)
        return Path(file.name).read_bytes()


# ---- the server itself, by a foreign client


def test_the_tests_server_speaks_dicomweb(phantom: list[Path]) -> None:
    from dicomweb_client.api import DICOMwebClient

    with serving(phantom) as server:
        foreign = DICOMwebClient(server.url)
        study = foreign.search_for_studies()[0]["0020000D"]["Value"][0]
        series = {entry["0020000E"]["Value"][0] for entry in foreign.search_for_series(study)}
        assert len(series) == 2
        instances = [entry["00080018"]["Value"][0] for uid in series for entry in foreign.search_for_instances(study, uid)]
        assert len(instances) == 7
        _, uid, instance = next(iter(server.files))
        assert foreign.retrieve_instance(study, uid, instance).SOPInstanceUID == instance


# ---- listing


@pytest.mark.parametrize("cap", [1, 2, 1000])
def test_a_listing_pages_to_the_end(phantom: list[Path], cap: int) -> None:
    with serving(phantom, cap=cap) as server:
        found = list(walk([server.uri], [], QUICK))
        assert sorted(one.uri for one in found) == sorted(server.uri + path for path in server.paths())
        assert {(one.size, one.modified_us) for one in found} == {(-1, 0)}
        _, series, _ = next(iter(server.files))
        below = [one.uri for one in walk([parse(server.uri + server.paths()[0]).uri.rsplit("/instances", 1)[0]], [], QUICK)]
        assert below == [server.uri + path for path in server.paths() if series in path.split("/")]


def test_a_server_that_ignores_the_offset_ends_the_listing(phantom: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(phantom) as server:
        original = Client._page
        monkeypatch.setattr(Client, "_page", lambda self, address, offset: original(self, address, 0))
        client = Client(Access(page=1000))
        assert len(client.search(parse(server.uri))) == 1
        assert len(server.log) == 2


def test_a_part_that_cannot_be_listed_is_absent_and_the_rest_comes(phantom: list[Path]) -> None:
    with serving(phantom) as server:
        series = "/".join(server.paths()[0].split("/")[:5])
        server.faults[f"{series}/instances"] = [500] * 4
        found = [one.uri for one in walk([server.uri], [], QUICK)]
        assert server.uri + series in found
        with pytest.raises(Unavailable, match="could not list"), brought(server.uri + series, QUICK):
            pass
        assert len([uri for uri in found if "/instances/" in uri]) == sum(f"{series}/" not in path for path in server.paths()) > 0


def test_an_input_that_cannot_be_listed_is_a_bad_request(phantom: list[Path]) -> None:
    with serving(phantom, token=TOKEN) as server:
        with pytest.raises(BadRequest, match=r"refuses access \(401\).*MEDSPARK_DICOMWEB_TOKEN"):
            list(walk([server.uri], [], QUICK))
        uri = server.uri
    with pytest.raises(BadRequest, match="connection failed"):
        list(walk([uri], [], Access(pause_s=0.01, attempts=2)))


# ---- fetching


@pytest.mark.parametrize("single", [False, True])
def test_files_come_as_they_are(single: bool) -> None:
    files = real_files()[:2]
    with serving(files, single=single) as server:
        for path, file in zip(server.paths(), server.files.values(), strict=True):
            assert fetched(server, path) == file.read_bytes()


@pytest.mark.parametrize("faults", [[503, 429], ["reset", "reset"], ["cut", 500, "cut"], ["slow"], [503, "reset", "cut"]])
def test_faults_are_outlived(faults: list[Any]) -> None:
    file = real_files()[0]
    with serving([file]) as server:
        path = server.paths()[0]
        server.faults[path] = list(faults)
        assert fetched(server, path) == file.read_bytes()
        assert server.faults[path] == []


def test_retry_after_is_honoured_and_bounded() -> None:
    with serving(real_files()[:1]) as server:
        path, server.retry_after = server.paths()[0], "1"
        server.faults[path] = [503]
        started = time.monotonic()
        fetched(server, path)
        assert 0.9 < time.monotonic() - started < 5
    for said, expected in (("7", 7.0), ("100000", dicomweb.LONGEST_PAUSE_S), ("-3", None), ("soon", None)):

        class Answer:
            headers = {"retry-after": said}

        assert dicomweb._retry_after(Answer()) == expected  # type: ignore[arg-type]


def test_what_never_comes_is_unavailable_and_a_dead_server_is_soon_asked_once_only() -> None:
    with serving(real_files()[:1]) as server:
        path = server.paths()[0]
        server.faults[path] = [503] * 1000
        server.retry_after = "0"
        client, asked = Client(QUICK), []
        for _ in range(6):
            before = len(server.log)
            with pytest.raises(Unavailable, match="answers 503"):
                client.fetch(parse(server.uri + path), "/dev/null")
            asked.append(len(server.log) - before)
        assert asked == [4, 4, 4, 1, 1, 1]
        server.faults[path] = []
        client.fetch(parse(server.uri + path), "/dev/null")
        server.faults[path] = [503, 503]
        client.fetch(parse(server.uri + path), "/dev/null")  # it lives again, so it is asked again


def test_an_instance_that_is_not_there_is_asked_for_once() -> None:
    with serving(real_files()[:1]) as server:
        with pytest.raises(Unavailable, match="404"):
            fetched(server, server.paths()[0] + "9")
        assert len(server.log) == 1


def test_a_silent_server_is_given_up() -> None:
    with serving(real_files()[:1]) as server:
        server.faults[server.paths()[0]] = ["slow"] * 10
        server.slow_s = 1.0
        started = time.monotonic()
        with pytest.raises(Unavailable, match="connection failed"):
            fetched(server, server.paths()[0], Access(pause_s=0.01, attempts=2, timeout_s=0.3))
        assert time.monotonic() - started < 5


def test_a_file_beyond_the_bound_is_rejected() -> None:
    file = real_files()[0]
    with serving([file]) as server, pytest.raises(Rejected, match="TOO_LARGE"):
        fetched(server, server.paths()[0], Access(max_bytes=file.stat().st_size - dicomweb.SLACK_BYTES - 1000))


def test_copies_are_private_and_go() -> None:
    file = real_files()[0]
    with serving([file]) as server:
        with brought(server.uri + server.paths()[0], QUICK) as path:
            assert Path(path).read_bytes() == file.read_bytes()
            assert Path(path).parent.stat().st_mode & 0o777 == 0o700
        assert not Path(path).parent.exists()


# ---- the token


def test_the_token_goes_to_its_server_and_to_no_other(phantom: list[Path]) -> None:
    with serving(phantom, token=TOKEN) as server, serving(phantom) as other:
        path = server.paths()[0]
        access = Access(TOKEN, pause_s=0.01)
        assert fetched(server, path, access)
        server.faults[path] = ["redirect:" + other.url]
        assert fetched(server, path, access)
        assert [headers.get("authorization") for _, headers in server.log] == [f"Bearer {TOKEN}"] * 2
        assert len(other.log) == 1
        assert TOKEN not in str(other.log)
        server.faults[path] = ["redirect:http://192.0.2.1/dicom-web"]
        with pytest.raises(Unavailable, match="not https"):
            fetched(server, path, access)
        assert TOKEN not in repr(access)


def test_certificates_are_checked(phantom: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate = self_signed(tmp_path)
    with serving(phantom, certificate=certificate) as server:
        assert server.uri.startswith("dicomweb+https://127.0.0.1:")
        with pytest.raises(BadRequest, match=r"certificate is not accepted.*REQUESTS_CA_BUNDLE"):
            list(walk([server.uri], [], Access(TOKEN)))
        assert server.log == []
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
        assert len(list(walk([server.uri], [], Access(TOKEN, page=7)))) == len(phantom)


def self_signed(folder: Path) -> Path:
    """Certificate and key for 127.0.0.1 in one PEM file."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "medspark tests")])
    now = datetime.now(UTC)
    made = x509.CertificateBuilder(
        name, name, key.public_key(), x509.random_serial_number(), now - timedelta(days=1), now + timedelta(days=1)
    )
    made = made.add_extension(x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False)
    made = made.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    signed = made.sign(key, hashes.SHA256())
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path = folder / "certificate.pem"
    path.write_bytes(private + signed.public_bytes(serialization.Encoding.PEM))
    return path


# ---- into the lake


def alike(left: Path, right: Path, tables: tuple[str, ...]) -> None:
    """Rows are equal but for addresses and what is made of them."""
    for table in tables:
        said = [
            sorted(
                str({key: value for key, value in row.items() if key not in harness.BY_CHANCE and key not in BY_ADDRESS})
                for row in harness.rows(lake, table)
            )
            for lake in (left, right)
        ]
        assert said[0] == said[1], table
        assert said[0], table


@pytest.mark.spark
def test_a_wide_listing_moves_into_tasks_and_takes_the_token_along(
    spark: Any, phantom: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan, "FANOUT", 1)  # two series waiting are wide enough
    with serving(phantom, token=TOKEN) as server:
        series = "/".join(server.paths()[0].split("/")[:5])
        server.faults[f"{series}/instances"] = [403]
        found = [one.uri for one in walk([server.uri], [], Access(TOKEN, pause_s=0.01), spark)]
        assert sorted(found) == sorted(
            [server.uri + series, *(server.uri + path for path in server.paths() if not path.startswith(series + "/"))]
        )
        assert len(found) > 1


@pytest.mark.spark
@pytest.mark.slow
def test_rows_from_a_server_equal_rows_from_a_folder(spark: Any, tmp_path: Path) -> None:
    files = real_files()
    settings = config.load(None, SETTINGS)
    harness.run(spark, tmp_path / "folder", files)
    with serving(files, cap=5) as server:
        chance = iter([503, "reset", "cut", "slow", 429] * len(files))
        server.retry_after = "0"
        for path in server.paths():
            server.faults[path] = [next(chance)]
        lost = server.paths()[1]
        server.faults[lost] = [500] * 3
        late = server.paths()[2] if len(files) > 2 else server.paths()[0]
        server.faults[late] = []
        lake = tmp_path / "web"
        summary = harness.run(spark, lake, [server.uri], settings=settings)  # type: ignore[list-item]
        assert summary.extra["unavailable"] == 1
        assert summary.extra["hints"] == ["it answers 500; asked 3 times"]
        assert (summary.rejected, summary.written["slices"]) == (0, len(files) - 1)
        assert harness.rows(lake, "rejected") == []
        assert server.uri + lost not in {row["uri"] for row in harness.rows(lake, "sources")}

        again = harness.run(spark, lake, [server.uri], settings=settings)  # type: ignore[list-item]
        assert (again.skipped, again.written["slices"]) == (len(files) - 1, 1)
        assert "unavailable" not in again.extra
        ledger = harness.rows(lake, "sources")
        assert {row["uri"] for row in ledger} == {server.uri + path for path in server.paths()}
        assert {row["modified_at"].timestamp() for row in ledger} == {0.0}
        assert sorted(row["size_bytes"] for row in ledger) == sorted(file.stat().st_size for file in files)

        before = len(server.log)
        third = harness.run(spark, lake, [server.uri], settings=settings)  # type: ignore[list-item]
        assert (third.skipped, third.new_sources) == (len(files), 0)
        assert not any("/instances/" in asked for asked, _ in server.log[before:]), "what is known is not fetched again"
    alike(tmp_path / "folder", lake, ("series", "slices", "pixels", "subjects", "sources"))
    harness.keys_unique(lake)


@pytest.mark.spark
@pytest.mark.slow
def test_an_instance_that_is_lost_between_scan_and_explode_leaves_nothing(spark: Any, tmp_path: Path, phantom: list[Path]) -> None:
    """Beside it an instance that is broken on the server: a matter of the file, so a row in ``rejected``. Addresses are kept as tokens."""
    lake = tmp_path / "lake"
    whole = phantoms.write_series(tmp_path / "three", [0], SeriesInstanceUID=phantoms.ROOT + "33", SOPInstanceUID=("9.1",)) / "IM0000.dcm"
    broken = tmp_path / "broken.dcm"
    broken.write_bytes(whole.read_bytes()[:-10])
    with serving([*phantom, broken]) as server:
        lost = next(path for path in server.paths() if not path.endswith("9.1"))
        server.faults[lost] = [None, 500, 500, 500]  # the scan gets it
        settings = config.load(None, [*SETTINGS, "deid.uris=token"])
        first = harness.run(spark, lake, [server.uri], settings=settings)  # type: ignore[list-item]
        assert (first.extra["unavailable"], first.new_sources, first.written["slices"], first.rejected) == (1, 7, 6, 1)
        assert harness.rows(lake, "claims") == []
        assert [row["code"] for row in harness.rows(lake, "rejected")] == ["TRUNCATED"]
        assert len(harness.rows(lake, "sources")) == 7
        second = harness.run(spark, lake, [server.uri], settings=settings)  # type: ignore[list-item]
        assert (second.skipped, second.written["slices"]) == (7, 1)
        assert Counter(row["n_slices"] for row in harness.rows(lake, "series")) == {5: 1, 2: 1}
        harness.keys_unique(lake)


@pytest.mark.spark
@pytest.mark.slow
def test_the_job_takes_the_token_from_the_environment_and_says_what_is_missing(tmp_path: Path, phantom: list[Path]) -> None:
    lake = tmp_path / "lake"
    with serving(phantom, token=TOKEN) as server:
        server.faults[server.paths()[0]] = [404]
        options = ["--lake", lake, "--input", server.uri, "--set", "dicomweb.pause_s=0.01"]
        process = harness.job("explode_series", *options, env={VARIABLE: TOKEN})
        out, err = process.communicate(timeout=300)
        assert process.returncode == 4, err[-3000:]
        assert '"unavailable": 1' in out
        assert TOKEN not in out + err
    assert {row["dataset"] for row in harness.rows(lake, "slices")} == {"127.0.0.1"}
    assert not [found for found in harness.strings(lake) if TOKEN in found[2]]
    assert len(harness.rows(lake, "slices")) == 6


def test_other_jobs_refuse_a_server(tmp_path: Path) -> None:
    for job, address, said in (
        ("tile_slides", "dicomweb+https://pacs.example.org/w", "only explode_series"),
        ("explode_series", "dicomweb+http://pacs.example.org/w", "unencrypted"),
        ("explode_series", f"dicomweb+https://me:{TOKEN}@pacs.example.org/w", "must not hold a user"),
    ):
        process = harness.job(job, "--lake", tmp_path / "lake", "--input", address)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 2, err
        assert said in err and TOKEN not in err
        assert out == ""
