"""Keys in a PKCS #11 token: SoftHSM stands for a smart card or HSM, through securesystemslib's own signer.

CI installs ``softhsm2`` and the ``hsm`` extra, and fails when this is skipped.
"""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import subprocess
from pathlib import Path

import pytest

from driftseed.core.errors import KeyUnusable
from driftseed.trust.audit import audit, list_keys
from driftseed.trust.ceremony import FleetKeys
from driftseed.trust.device import FleetTrust
from driftseed.trust.keyring import name_key
from support_trust import FakeClock, Neighbour, add_release, make_fleet

MODULES = ("/usr/lib/softhsm/libsofthsm2.so", "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so")
MODULE = next((path for path in MODULES if Path(path).exists()), None)
LABEL = "driftseed test"
PIN = "123456"

pytestmark = pytest.mark.skipif(
    MODULE is None or shutil.which("softhsm2-util") is None or importlib.util.find_spec("pkcs11") is None,
    reason="needs softhsm2 (apt) and python-pkcs11 (the hsm extra)",
)


@pytest.fixture
def token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A token with an ECDSA P-256 key under id 2; gives its URI."""
    pkcs11 = importlib.import_module("pkcs11")  # the hsm extra is optional

    (tmp_path / "tokens").mkdir()
    config = tmp_path / "softhsm2.conf"
    config.write_text(f"directories.tokendir = {tmp_path / 'tokens'}\nlog.level = ERROR\n")
    monkeypatch.setenv("SOFTHSM2_CONF", str(config))
    monkeypatch.setenv("PYKCS11LIB", str(MODULE))
    subprocess.run(
        ["softhsm2-util", "--init-token", "--free", "--label", LABEL, "--pin", PIN, "--so-pin", PIN],
        check=True,
        capture_output=True,
    )
    library = pkcs11.lib(str(MODULE))
    library.reinitialize()
    with library.get_token(token_label=LABEL).open(rw=True, user_pin=PIN) as session:
        parameters = session.create_domain_parameters(
            pkcs11.KeyType.EC,
            {pkcs11.Attribute.EC_PARAMS: pkcs11.util.ec.encode_named_curve_parameters("secp256r1")},
            local=True,
        )
        parameters.generate_keypair(store=True, id=b"\x02", label="release key")
    return "hsm:2?label=driftseed+test"


def pin(what: str) -> bytes:
    assert what.startswith("pin of hsm:2")
    return PIN.encode()


def test_a_token_signs_for_a_role_and_devices_believe_it(tmp_path: Path, token: str) -> None:
    clock = FakeClock()
    make_fleet(tmp_path / "fleet", clock)
    fleet = FleetKeys.open(tmp_path / "fleet", pin, clock)
    key = name_key(token, pin)
    assert fleet.rotate("releases", [key]) is None
    (row,) = [each for each in list_keys(fleet) if each.role == "releases"]
    assert (row.kind, row.uri, row.here) == ("ecdsa", token, True)
    add_release(fleet, tmp_path)
    assert audit(fleet, clock).problems == []
    fleet.add_deployment(deployment_id="0" * 32, release="app", version="1.0")
    device = FleetTrust(tmp_path / "device", fleet.first_root, clock)
    assert len(device.refresh(Neighbour(dict(fleet.files()))).deployments) == 1


def test_a_token_that_is_gone_is_said_to_be(
    tmp_path: Path, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = FakeClock()
    make_fleet(tmp_path / "fleet", clock)
    fleet = FleetKeys.open(tmp_path / "fleet", pin, clock)
    fleet.rotate("root", [name_key(token, pin)])
    monkeypatch.delenv("PYKCS11LIB")
    with pytest.raises(KeyUnusable, match=r"did not sign.*PYKCS11LIB"):
        fleet.renew_root()


def test_a_uri_that_leads_nowhere_is_refused(tmp_path: Path, token: str) -> None:
    for uri in ("hsm:2?label=another", "hsm:9?label=driftseed+test", "hsm:x"):
        with pytest.raises(KeyUnusable, match="cannot be used"):
            name_key(uri, lambda _: PIN.encode())
