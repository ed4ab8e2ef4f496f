"""Which interface of a machine has an address."""

import json
import os
import subprocess

import pytest

from orchestrator.cluster.rendezvous import interface_of, use_nodes_interface


def test_an_address_is_found_at_the_interface_that_the_system_itself_names() -> None:
    try:
        told = subprocess.run(["ip", "-j", "-4", "addr"], capture_output=True, check=True)
    except FileNotFoundError:
        pytest.skip("needs the command ip (Debian: iproute2)")
    for interface in json.loads(told.stdout):
        for address in interface["addr_info"]:
            if not address.get("secondary"):
                assert interface_of(address["local"]) == interface["ifname"]


def test_an_address_that_is_another_machines_has_no_interface() -> None:
    assert interface_of("203.0.113.7") is None
    assert interface_of("::1") is None


def test_what_the_environment_says_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.util.get_node_ip_address", lambda: "127.0.0.1")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth7")
    use_nodes_interface()
    assert os.environ["GLOO_SOCKET_IFNAME"] == "eth7"
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    use_nodes_interface()
    assert os.environ["GLOO_SOCKET_IFNAME"] == "lo"
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
