"""A small tokenizer and small texts of our own."""

import random

import pytest

from turncoder.data.vocabulary import train_tokenizer

WORDS = [
    "the",
    "a",
    "lamp",
    "river",
    "stone",
    "quietly",
    "carried",
    "beneath",
    "snow_fall",
    "1984",
    "über",
    "снег",
    "눈",
]


def make_texts(count, seed=0):
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(1, 40))) for _ in range(count)]


@pytest.fixture(scope="session")
def texts():
    return make_texts(600)


@pytest.fixture(scope="session")
def tokenizer(texts):
    return train_tokenizer(texts, 320)
