"""Profiles: what is in the file, who may read it, which source wins; and obsutil's file."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from obs_engine.cli.connection import decorated, open_client, service_options
from obs_engine.cli.profiles import KEYS, Profiles, config_file, is_secret, read_obsutil, read_value, shown
from obs_engine.cli.uploads import age_in_words, age_of, split_prefix
from obs_engine.errors import InvalidArgumentError
from obs_engine.options import EngineOptions

SECRET = "s3cret+Key/0123456789012345678901234567"
ENDPOINT = "https://obs.cn-north-4.myhuaweicloud.com"
GOOD = {
    "endpoint": ENDPOINT, "access_key": "AKEXAMPLE00000000001", "secret_key": SECRET, "security_token": "t0ken==",
    "provider": "ECS", "signature": "v4", "region": "cn-north-4", "path_style": "yes", "ca_file": "/etc/ca.pem",
    "part_size": "16M", "parts_in_flight": "12", "verify": "crc64", "max_bandwidth": "08:00,20M 19:00,off",
}  # fmt: skip
BAD = {
    "endpoint": "https://host/path", "access_key": "", "secret_key": "two\nlines", "security_token": " ",
    "provider": "MINE", "signature": "v5", "region": "a\tb", "path_style": "perhaps", "ca_file": "",
    "part_size": "much", "parts_in_flight": "0", "verify": "all", "max_bandwidth": "fast",
}  # fmt: skip


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "obs-engine" / "config.toml"


@pytest.mark.parametrize("key", KEYS)
def test_every_key_says_what_it_expects(key: str) -> None:
    """A good value is taken, a bad one named with what was expected; a secret is in neither sentence."""
    read_value(key, GOOD[key])
    with pytest.raises(InvalidArgumentError, match=r"expected .*found") as refused:
        read_value(key, BAD[key])
    assert str(refused.value).startswith(key)
    if is_secret(key):
        assert BAD[key] not in str(refused.value) or not BAD[key].strip()


def test_an_unknown_key_is_refused() -> None:
    """With the names that there are."""
    with pytest.raises(InvalidArgumentError, match="expected one of endpoint, "):
        read_value("password", "x")


def test_a_profile_is_read_as_it_was_put(path: Path) -> None:
    """All values, in a file and a directory that are their owner's alone; the other profiles stay."""
    values = {key: read_value(key, GOOD[key]) for key in KEYS}
    Profiles(path).put("default", {"region": "elsewhere"})
    Profiles(path).put("work", values)
    assert Profiles(path).get("work") == values
    assert Profiles(path).get("default") == {"region": "elsewhere"}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert os.listdir(path.parent) == ["config.toml"]


def test_a_key_is_taken_out_again(path: Path) -> None:
    """And no other one."""
    Profiles(path).put("default", {"region": "a", "signature": "v4"})
    Profiles(path).put("default", {"region": None, "part_size": None})
    assert Profiles(path).get("default") == {"signature": "v4"}


@pytest.mark.parametrize("text", ['quo"te', "back\\slash", "düne", "a = b # c", "[x]", "\\u0041"])
def test_every_text_survives_the_file(path: Path, text: str) -> None:
    """Quotes, backslashes and signs of TOML are escaped."""
    Profiles(path).put("default", {"region": text})
    assert Profiles(path).get("default") == {"region": text}


def test_a_link_to_the_file_stays_one(path: Path, tmp_path: Path) -> None:
    """It is what it leads to that is written anew."""
    real = tmp_path / "real.toml"
    path.parent.mkdir()
    path.symlink_to(real)
    Profiles(path).put("default", {"region": "a"})
    assert path.is_symlink()
    assert Profiles(real).get("default") == {"region": "a"}


def test_the_default_profile_may_be_missing_and_another_not(path: Path) -> None:
    """A name that was asked for and is not there is an error that says which there are."""
    assert Profiles(path).get("default") == {}
    Profiles(path).put("work", {"region": "a"})
    with pytest.raises(InvalidArgumentError, match=r"profile 'wrok': expected one of .*, found work there"):
        Profiles(path).get("wrok")
    with pytest.raises(InvalidArgumentError, match="letters, digits"):
        Profiles(path).put("my profile", {})


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("endpoint = ", "no TOML"),
        ("endpoint = 'x.com'", "'endpoint' outside of a table"),
        ("[default]\nregion = ['a']", r"\[default\] region: a list"),
        ("[default]\ncolour = 'red'", "key 'colour': expected one of"),
        ("[default]\nverify = 'all'", r"\[default\] verify: expected one of"),
    ],
)
def test_a_file_that_is_wrong_is_named_with_its_fault(path: Path, text: str, found: str) -> None:
    """And with what was expected of it; nothing of it is used."""
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(InvalidArgumentError, match=found) as refused:
        Profiles(path).get("default")
    assert str(path) in str(refused.value)


@pytest.mark.parametrize(
    ("text", "mode", "is_exposed"),
    [
        ("[default]\nsecret_key = 'x'\n", 0o644, True),
        ("[default]\nsecret_key = 'x'\n", 0o600, False),
        ("[default]\nregion = 'x'\n", 0o644, False),
    ],
)
def test_secrets_that_others_may_read_are_noticed(path: Path, text: str, mode: int, is_exposed: bool) -> None:
    """By the file's mode; and the next `put` closes it."""
    path.parent.mkdir()
    path.write_text(text)
    path.chmod(mode)
    profiles = Profiles(path)
    assert profiles.is_exposed is is_exposed
    profiles.put("default", {"region": "y"})
    assert not Profiles(path).is_exposed


def test_the_file_is_where_xdg_says() -> None:
    """A relative $XDG_CONFIG_HOME does not count."""
    assert config_file({"XDG_CONFIG_HOME": "/etc/me"}) == Path("/etc/me/obs-engine/config.toml")
    assert config_file({"XDG_CONFIG_HOME": "me"}) == config_file({})
    assert config_file({}).parts[-3:] == (".config", "obs-engine", "config.toml")


def test_nothing_of_a_secret_is_shown() -> None:
    """Of an access key its last four letters."""
    assert shown("secret_key", SECRET) == shown("security_token", "t") == "****"
    assert shown("access_key", "AKEXAMPLE00000000001") == "****0001"
    assert shown("access_key", "short") == "****"
    assert (shown("path_style", True), shown("region", "a"), shown("parts_in_flight", 8)) == ("true", "a", "8")


# --- obsutil --------------------------------------------------------------------------------------------------------


def test_obsutils_file_becomes_a_profile() -> None:
    """Endpoint, keys and token; the rest of it is about obsutil."""
    text = f"# a comment\nendpoint={ENDPOINT}\r\nak=AKEXAMPLE00000000001\nsk={SECRET}\ntoken=abc==\ndefaultJobs=5\n"
    assert read_obsutil(text) == (
        {"endpoint": ENDPOINT, "access_key": "AKEXAMPLE00000000001", "secret_key": SECRET, "security_token": "abc=="},
        [],
    )


@pytest.mark.parametrize("pair", ["ak=Zm9vYmFy/x==\nsk=YmFyZm9v+y==", "ak=AKEXAMPLE00000000001\nsk=", f"sk={SECRET}"])
def test_keys_that_are_encrypted_or_alone_are_left_out(pair: str) -> None:
    """With a word about each; the endpoint is taken. No word shows a key."""
    found, left_out = read_obsutil(f"endpoint=obs.x.com\n{pair}\ntoken=abc\n")
    assert found == {"endpoint": "obs.x.com"}
    assert "token: " in " ".join(left_out)
    assert not any(word.partition("=")[2] in "".join(left_out) for word in pair.splitlines() if word[-1] != "=")


def test_obsutils_provider_chain_is_taken() -> None:
    """Its switch is our policy."""
    assert read_obsutil("endpoint=x.com\nak=\nsk=\nautoChooseSecurityProvider=true") == (
        {"endpoint": "x.com", "provider": "OBS_DEFAULT"}, []
    )  # fmt: skip


# --- which source wins ----------------------------------------------------------------------------------------------

Told = dict[str, Any]


@pytest.fixture
def tell(path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Told]:
    """Runs a command with these flags, environment and profile; what its client would be made with."""

    def run(flags: str = "", environment: Told | None = None, profile: Told | None = None) -> Told:
        told: Told = {}

        def command(**connection: Any) -> None:
            open_client(EngineOptions(), **connection)

        def client(**arguments: Any) -> None:
            told.update(arguments)

        monkeypatch.setattr("obs_engine.cli.connection.ObsClient", client)
        if profile:
            Profiles(path).put("default", profile)
        names = ["ENDPOINT", "ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SECURITY_TOKEN", "ENGINE_PROFILE"]
        clean = {f"OBS_{name}": None for name in names}
        done = CliRunner().invoke(
            click.command()(decorated(command, [service_options()])), flags.split(),
            env={**clean, "XDG_CONFIG_HOME": str(path.parent.parent), **(environment or {})}, catch_exceptions=False,
        )  # fmt: skip
        assert done.exit_code == 0, done.output
        return told

    return run


KEYS_OF_ENVIRONMENT = {"OBS_ACCESS_KEY_ID": "AKENV", "OBS_SECRET_ACCESS_KEY": "SKENV"}
PROFILE = {"endpoint": "profile.x", "access_key": "AKPROFILE", "secret_key": "SKPROFILE", "security_token": "TPROFILE"}


def keys_of(told: Told) -> tuple[str, str, str | None]:
    return told["access_key_id"], told["secret_access_key"], told["security_token"]


def test_flags_beat_the_environment_and_that_a_profile(tell: Callable[..., Told]) -> None:
    """For each value that is no key, one by one."""
    environment = {"OBS_ENDPOINT": "environment.x"}
    profile = {"endpoint": "profile.x", "region": "r", "path_style": True}
    told = tell("--endpoint flag.x", environment, profile)
    assert (told["server"], told["region"], told["path_style"]) == ("flag.x", "r", True)
    assert tell("", environment, profile)["server"] == "environment.x"
    assert tell("", {}, profile)["server"] == "profile.x"


@pytest.mark.parametrize(
    ("flags", "environment", "expected"),
    [
        ("", {}, ("AKPROFILE", "SKPROFILE", "TPROFILE")),
        ("", KEYS_OF_ENVIRONMENT, ("AKENV", "SKENV", None)),
        ("", {**KEYS_OF_ENVIRONMENT, "OBS_SECURITY_TOKEN": "TENV"}, ("AKENV", "SKENV", "TENV")),
        ("", {"OBS_SECURITY_TOKEN": "TENV"}, ("AKPROFILE", "SKPROFILE", "TPROFILE")),
        ("--access-key A --secret-key S", {**KEYS_OF_ENVIRONMENT, "OBS_SECURITY_TOKEN": "TENV"}, ("A", "S", None)),
        ("--access-key A --secret-key S --security-token T", KEYS_OF_ENVIRONMENT, ("A", "S", "T")),
        ("--provider ENV", KEYS_OF_ENVIRONMENT, ("", "", None)),
    ],
)
def test_keys_come_from_one_source_whole(
    tell: Callable[..., Told], flags: str, environment: Told, expected: tuple[str, str, str | None]
) -> None:
    """Never the token of one source with the keys of another; a provider that is asked for by a flag comes first."""
    told = tell(flags, environment, PROFILE)
    assert keys_of(told) == expected
    assert told["security_provider_policy"] == ("ENV" if "--provider" in flags else None)


def test_a_profiles_provider_is_asked_where_no_keys_are_given(tell: Callable[..., Told]) -> None:
    """Keys of the environment beat it, as they beat the profile's."""
    profile = {"endpoint": "profile.x", "provider": "ECS"}
    told = tell("", {}, profile)
    assert (keys_of(told), told["security_provider_policy"]) == (("", "", None), "ECS")
    assert keys_of(tell("", KEYS_OF_ENVIRONMENT, profile)) == ("AKENV", "SKENV", None)


def test_half_a_pair_of_keys_is_refused(tell: Callable[..., Told]) -> None:
    """It would be an anonymous request, and not what was meant."""
    with pytest.raises(InvalidArgumentError, match="found no secret"):
        tell("--access-key A --endpoint x")


# --- ages and targets -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"), [("30m", 1800), ("12h", 43_200), ("7d", 604_800), ("2w", 1_209_600), ("0M", 0)]
)
def test_ages_as_people_write_them(text: str, seconds: int) -> None:
    """Minutes, hours, days, weeks."""
    assert age_of(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["7", "d", "-1d", "1y", "1.5d", ""])
def test_what_is_no_age_is_refused(text: str) -> None:
    """A bare number above all: of what?"""
    with pytest.raises(InvalidArgumentError, match="7d"):
        age_of(text)


def test_ages_are_told_in_two_units() -> None:
    """The largest ones."""
    ages = [timedelta(days=3, hours=4), timedelta(hours=5, minutes=6), timedelta(minutes=7), timedelta(-1), None]
    assert [age_in_words(age) for age in ages] == ["3d 4h", "5h 6m", "7m", "0m", "?"]


def test_a_target_may_be_a_whole_bucket() -> None:
    """Or a prefix in it; a bucket it must have."""
    assert split_prefix("obs://b") == split_prefix("obs://b/") == ("b", "")
    assert split_prefix("obs://b/a/c") == ("b", "a/c")
    for wrong in ("b/a", "obs://", "obs:///a"):
        with pytest.raises(InvalidArgumentError, match="obs://BUCKET"):
            split_prefix(wrong)


def test_python_310_reads_profiles_too() -> None:
    """By the package that the extra [cli] names for it."""
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert "tomli>=2; python_version < '3.11'" in text
