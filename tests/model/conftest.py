"""Proofs are remembered in a folder of the test run, not in the user's."""

import os

import pytest


@pytest.fixture(scope="session", autouse=True)
def proofs(tmp_path_factory):
    before = os.environ.get("TURNCODER_CACHE")
    os.environ["TURNCODER_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    os.environ.pop("TURNCODER_CACHE")
    if before is not None:
        os.environ["TURNCODER_CACHE"] = before
