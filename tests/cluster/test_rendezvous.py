"""Network interface of a node's address."""

import json
import os
import subprocess

import pytest

from orchestrator.cluster.rendezvous import interface_of, use_node_interface


def test_an_address_is_found_at_the_interface_that_the_system_names() -> None:
    try:
        listed = subprocess.run(["ip", "-j", "-4", "addr"], capture_output=True, check=True)
    except FileNotFoundError:
        pytest.skip("needs the command ip (Debian: iproute2)")
    for interface in json.loads(listed.stdout):
        for address in interface["addr_info"]:
            if not address.get("secondary"):
                assert interface_of(address["local"]) == interface["ifname"]


def test_an_address_of_another_machine_has_no_interface() -> None:
    assert interface_of("203.0.113.7") is None
    assert interface_of("::1") is None


def test_the_interface_that_the_environment_names_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.util.get_node_ip_address", lambda: "127.0.0.1")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth7")
    use_node_interface()
    assert os.environ["GLOO_SOCKET_IFNAME"] == "eth7"
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    use_node_interface()
    assert os.environ["GLOO_SOCKET_IFNAME"] == "lo"
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
