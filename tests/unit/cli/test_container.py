"""The container of a service: replaced with minimal rights and the needed settings, or restored."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from docker_support import DockerHost

from ondol.cli.container import Container
from ondol.config import load_settings
from ondol.errors import UserError

NAME, KEPT, OLD = "churn-production", "churn-production-BEFORE", "churn"
CONFIG = """[project]
name = "churn"
[environments.production]
store = "store"
url = "https://churn.example.org:8443"
"""
Open = Callable[..., Container]


class Unverified(Exception):
    """The error of a failed verification."""


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DockerHost:
    made = DockerHost(tmp_path, "production")
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("ML_ENVIRONMENTS__PRODUCTION__HOST", made.address)
    for name in ("ML_LOG_KEY", "ML_SERVICE__WORKERS", "ML_SERVICE__HOSTS"):
        monkeypatch.delenv(name, raising=False)
    return made


@pytest.fixture
def container(host: DockerHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Open:
    """The container of an environment with these settings and variables."""
    (tmp_path / "config.toml").write_text(CONFIG, encoding="utf-8")

    def open_container(**environment: str) -> Container:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        return Container(load_settings(tmp_path), "production")

    return open_container


def replace(container: Container, image: str = "churn:2") -> None:
    with container.replaced(image):
        pass


def fail(container: Container, image: str = "churn:2") -> None:
    """Replace the container by one that is not proved."""
    with pytest.raises(Unverified), container.replaced(image):
        raise Unverified


def test_container_has_the_least_rights(host, container, tmp_path):
    replace(container())
    assert host.running == {NAME: "churn:2"}
    (command,) = [" ".join(words) for words in host.state["log"] if words[0] == "run"]
    for option in (
        "--read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges",
        f"--volume {tmp_path / 'store'}:/store --env ML_STORE=/store",
        "--publish 127.0.0.1:3000:3000",
        "--restart unless-stopped",
    ):
        assert option in command


def test_old_container_runs_until_the_new_one_is_there_and_is_kept_until_that_is_proved(host, container):
    host.have(NAME)
    with container().replaced("churn:2"):
        assert host.running == {NAME: "churn:2"}
        assert host.containers[KEPT]["image"] == "churn:1"
        assert host.commands().index("pull") < host.commands().index("stop")
    assert {name: made["image"] for name, made in host.containers.items()} == {NAME: "churn:2"}


def test_image_that_runs_is_not_replaced(host, container, tmp_path):
    names = "churn.example.org,churn.example.org:8443"
    host.have(NAME, store=str(tmp_path / "store"), ML_SERVICE__HOSTS=names, ML_ACCESS__OPEN="True")
    replace(container(), "churn:1")
    assert set(host.commands()) == {"container"}


def test_image_that_runs_is_reported(host, container):
    assert container().image() is None
    host.have(NAME, state="exited")
    assert container().image() is None
    host.have(NAME, "churn:2")
    assert container().image() == "churn:2"


def test_failure_puts_the_old_container_back_without_a_registry(host, container, capsys):
    """The old image is no longer in the registry, as after a clean-up, nor in the host's list of images."""
    before = host.have(NAME, ML_LOG_KEY="secret")
    host.write(registry=["churn:2"], images=[])
    fail(container())
    assert host.containers == before
    assert [words[-1] for words in host.state["log"] if words[0] == "pull"] == ["churn:2"]
    assert "churn:1 runs again on ssh://production" in capsys.readouterr().out


def test_failure_leaves_no_container_where_none_was(host, container):
    fail(container())
    assert "run" in host.commands()
    assert host.containers == {}


def test_failure_does_not_start_a_container_that_was_stopped(host, container):
    before = host.have(NAME, state="exited")
    fail(container())
    assert "run" in host.commands()
    assert host.containers == before


@pytest.mark.parametrize("command", ["pull", "rename", "stop", "run"])
def test_only_what_was_done_is_undone(host, container, command, capsys):
    before = host.have(NAME)
    host.write(refused=[command])
    with pytest.raises(UserError, match=f"no {command} today"):
        replace(container())
    assert host.containers == before
    said = capsys.readouterr().out
    assert ("runs again" in said) is (command in ("stop", "run"))
    assert ("start" in host.commands()) is (command in ("stop", "run"))


def test_image_that_is_not_in_the_registry_moves_nothing(host, container):
    before = host.have(NAME)
    with pytest.raises(UserError, match="manifest unknown"):
        replace(container(), "churn:3")
    assert host.containers == before
    assert not {"rename", "stop", "start", "rm"} & set(host.commands())


def test_container_that_cannot_be_put_back_is_reported_with_its_name(host, container):
    host.have(NAME)
    host.write(refused=["start"])
    with pytest.raises(UserError, match=f"could not be restored: .*no start today See {KEPT} and {NAME} on ssh://"):
        fail(container())


@pytest.mark.parametrize("unverified", [{}, {NAME: "churn:3"}])
def test_release_after_one_that_was_killed_begins_with_what_was_verified(host, container, unverified):
    """Killed before or after the new container came."""
    host.have(KEPT, "churn:1", "exited")
    for name, image in unverified.items():
        host.have(name, image)
    fail(container())
    assert host.running == {NAME: "churn:1"}
    assert list(host.containers) == [NAME]


def test_old_container_that_cannot_be_removed_fails_no_proved_release(host, container, capsys):
    host.have(NAME)
    host.write(refused=["rm"])
    replace(container())
    assert f"Remove {KEPT} by hand" in capsys.readouterr().out
    assert host.running == {NAME: "churn:2"}


def test_variables_are_given_by_name_so_that_no_command_shows_their_values(host, container):
    replace(
        container(
            ML_ENVIRONMENTS__PRODUCTION__VARIABLES='["ML_LOG_KEY", "ML_LOG__KEEP_BYTES"]',
            ML_SERVICE__WORKERS="2",
            ML_LOG_KEY="very secret",
            ML_LOG__KEEP_BYTES="1000",
            ML_LOG__FILE_BYTES="2000",  # not asked for
        )
    )
    wanted = {"ML_LOG_KEY": "very secret", "ML_LOG__KEEP_BYTES": "1000", "ML_SERVICE__WORKERS": "2"}
    wanted["ML_SERVICE__HOSTS"] = "churn.example.org,churn.example.org:8443"
    assert host.containers[NAME]["env"] == wanted | {"ML_ACCESS__OPEN": "True", "ML_STORE": "/store"}
    assert "very secret" not in json.dumps(host.state["log"])


def test_image_that_runs_is_replaced_where_its_settings_have_changed(host, container):
    replace(container(ML_SERVICE__WORKERS="2"))
    replace(container(ML_SERVICE__WORKERS="3"))
    assert host.containers[NAME]["env"]["ML_SERVICE__WORKERS"] == "3"
    assert host.commands().count("run") == 2


@pytest.mark.parametrize(
    ("setting", "value", "seen"),
    [
        ("STORE", "other", ("binds", ["{root}/other:/store"])),
        ("STORE", "s3://bucket/churn", ("binds", ["churn-production-store:/store"])),
        ("URL", "http://churn.example.org:8080/v1", ("port", "127.0.0.1:8080")),
        ("PORT", "3333", ("port", "127.0.0.1:3333")),
        ("ADDRESS", "0.0.0.0", ("port", "0.0.0.0:3000")),
        ("ADDRESS", "::", ("port", "[::]:3000")),
    ],
)
def test_image_that_runs_is_replaced_where_its_store_or_port_has_changed(
    host, container, tmp_path, setting, value, seen
):
    replace(container())
    changed = {f"ML_ENVIRONMENTS__PRODUCTION__{setting}": value}
    replace(container(**changed))
    replace(container(**changed))
    assert host.commands().count("run") == 2
    key, wanted = seen
    assert str(host.containers[NAME][key]) == str(wanted).replace("{root}", str(tmp_path))


def test_two_environments_of_a_host_have_a_container_a_store_and_a_port_each(host, container, tmp_path):
    staging = {"HOST": host.address, "STORE": "staging", "URL": "http://churn.example.org:3001"}
    settings = {f"ML_ENVIRONMENTS__STAGING__{name}": value for name, value in staging.items()}
    replace(container(**settings))
    replace(Container(load_settings(tmp_path), "staging"), "churn:1")
    assert host.running == {NAME: "churn:2", "churn-staging": "churn:1"}
    made = [(c["binds"], c["port"]) for c in host.containers.values()]
    assert made == [
        ([f"{tmp_path}/store:/store"], "127.0.0.1:3000"),
        ([f"{tmp_path}/staging:/store"], "127.0.0.1:3001"),
    ]


def test_two_environments_with_one_port_of_a_host_are_refused(host, container):
    staging = {"HOST": host.address, "STORE": "staging", "URL": "https://staging.example.org"}
    with pytest.raises(UserError, match=r"^production and staging both publish the port 3000 of ssh://production"):
        container(**{f"ML_ENVIRONMENTS__STAGING__{name}": value for name, value in staging.items()})
    assert host.commands() == []


@pytest.mark.parametrize("ran", [True, False])
def test_container_of_an_earlier_version_is_replaced_and_not_left_beside_it(host, container, tmp_path, ran):
    """It was called like the project; a release of that version may have been killed."""
    host.have(OLD if ran else f"{OLD}-BEFORE", "churn:1", "running" if ran else "exited", str(tmp_path / "store"))
    assert container().image() == ("churn:1" if ran else None)
    fail(container())
    assert host.running == {NAME: "churn:1"}
    replace(container())
    assert {name: made["image"] for name, made in host.containers.items()} == {NAME: "churn:2"}


def test_container_of_an_earlier_version_with_another_store_is_not_ours(host, container):
    """It may belong to the host's other environment; the error names the container with the port, which is kept."""
    before = host.have(OLD, store="/srv/staging")
    assert container().image() is None
    with pytest.raises(UserError, match="port is already allocated"):
        replace(container())
    assert host.containers == before


def test_environment_of_any_name_has_a_container(host, container, tmp_path):
    settings = {"HOST": host.address, "STORE": "other", "URL": "http://127.0.0.1:9"}
    text = "".join(f"{key.lower()} = {json.dumps(value)}\n" for key, value in settings.items())
    container()
    with (tmp_path / "config.toml").open("a", encoding="utf-8") as file:
        file.write(f'[environments."운영"]\n{text}')
    replace(Container(load_settings(tmp_path), "운영"))
    assert [re.fullmatch("churn-[0-9a-f]{8}", name) is not None for name in host.running] == [True]


@pytest.mark.parametrize(
    "settings", [{"ML_ENVIRONMENTS__PRODUCTION__VARIABLES": '["ML_LOG_KEY"]'}, {"ML_LOG__SENSITIVE": "hash"}]
)
@pytest.mark.parametrize("value", [{}, {"ML_LOG_KEY": ""}])
def test_variable_that_is_not_set_is_refused_before_anything_moves(host, container, settings, value):
    """Otherwise the service would run without its key, and that would not be noticed."""
    host.have(NAME, ML_LOG_KEY="secret")
    with pytest.raises(UserError, match=r"^ML_LOG_KEY must be set here"):
        replace(container(**settings, **value))
    assert host.commands() == []


@pytest.mark.parametrize(
    ("address", "reachable"), [("127.0.0.1", False), ("::1", False), ("0.0.0.0", True), ("10.1.2.3", True)]
)
def test_container_without_access_control_is_published_on_the_loopback_only(host, container, address, reachable):
    made = container(ML_ENVIRONMENTS__PRODUCTION__ADDRESS=address)
    assert made.open is not reachable
    replace(made)
    place = f"[{address}]" if ":" in address else address
    assert host.containers[NAME]["port"] == f"{place}:3000"
    assert host.containers[NAME]["env"]["ML_ACCESS__OPEN"] == str(not reachable)


@pytest.mark.parametrize(
    "setting",
    [
        {"ML_ACCESS__OPEN": "true"},
        {"ML_ACCESS__JWKS": "https://issuer.example/jwks", "ML_ACCESS__AUDIENCE": "churn"},
    ],
)
def test_access_control_is_given_to_the_container(host, container, setting):
    made = container(ML_ENVIRONMENTS__PRODUCTION__ADDRESS="0.0.0.0", ML_ACCESS__RATE="5/second", **setting)
    replace(made)
    given = {name: value for name, value in host.containers[NAME]["env"].items() if name.startswith("ML_ACCESS")}
    wanted = {name: value.replace("true", "True") for name, value in setting.items()}
    assert made.open
    assert given == {"ML_ACCESS__OPEN": "False", "ML_ACCESS__RATE": "5/second"} | wanted


def test_container_that_an_earlier_version_published_on_every_address_is_replaced(host, container, tmp_path):
    host.have(NAME, store=str(tmp_path / "store"))
    made = host.state["containers"]
    made[NAME]["port"] = ":3000"  # as `docker` shows a port without an address
    host.write(containers=made)
    replace(container(), "churn:1")
    assert host.containers[NAME]["port"] == "127.0.0.1:3000"
