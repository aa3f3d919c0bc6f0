"""The questions about a picture, in many phrasings, and small talk without a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import random

PHRASINGS: Final[dict[str, tuple[str, ...]]] = {
    "colour": (
        "What colour is the shape?",
        "What color is the shape?",
        "What colour is it?",
        "What color is it?",
        "Which colour is this?",
        "Which color is this?",
        "What colour does the shape have?",
        "What color does the shape have?",
        "Name the colour of the shape.",
        "Name the color of the shape.",
        "Tell me the colour.",
        "Tell me the color.",
        "What is the colour of the shape?",
        "What is the color of the shape?",
        "Which colour is the shape in the picture?",
        "What color is the shape in this image?",
        "What colour is the object?",
        "What color is this object?",
    ),
    "shape": (
        "What shape is it?",
        "What shape is this?",
        "Which shape is this?",
        "Which shape do you see?",
        "What is the shape?",
        "Name the shape.",
        "Tell me the shape.",
        "What shape is in the picture?",
        "What shape is shown in the image?",
        "What kind of shape is it?",
        "Which shape is in this picture?",
        "What geometric shape is this?",
        "What form does it have?",
        "What shape can you see here?",
    ),
    "count": (
        "How many shapes are there?",
        "How many shapes are in the picture?",
        "How many shapes do you see?",
        "How many shapes can you see in the image?",
        "Count the shapes.",
        "Count the shapes in this picture.",
        "How many objects are there?",
        "How many things do you see?",
        "What is the number of shapes?",
        "Tell me how many shapes there are.",
        "How many are there?",
        "Number of shapes?",
        "How many objects are in this image?",
        "Count the objects.",
    ),
    "digit": (
        "What digit is this?",
        "Which digit is this?",
        "What number is this?",
        "Which number is written here?",
        "What digit is written here?",
        "What is the handwritten digit?",
        "Which digit do you see?",
        "Read the digit.",
        "Read the number.",
        "Tell me the digit.",
        "What digit is shown in the picture?",
        "Which number is in the image?",
        "What digit does the image show?",
        "What number do you see?",
        "Recognise the digit.",
        "Recognize the handwritten number.",
    ),
    "word": (
        "What does the word say?",
        "What word is this?",
        "Which word is this?",
        "Read the word.",
        "What does it say?",
        "What is written here?",
        "Which word is written here?",
        "What word do you see?",
        "What does the text say?",
        "Read the text.",
        "What word is in the picture?",
        "Which word is shown in the image?",
        "What is the word?",
        "Tell me the word.",
        "What does the sign say?",
    ),
    "photo": (
        "What is in the photograph?",
        "What is in the photo?",
        "What does the photograph show?",
        "What does the photo show?",
        "What do you see in the photo?",
        "What can you see in this photograph?",
        "What is the subject of the photograph?",
        "What is this a photo of?",
        "What is this a picture of?",
        "What is shown in the photograph?",
        "Name the subject of the photo.",
        "What is on this photo?",
        "Tell me what the photograph shows.",
        "What's in the photo?",
    ),
    "anything": (
        "What is in the picture?",
        "What is in this image?",
        "What do you see?",
        "What do you see in this picture?",
        "Describe the picture.",
        "Describe this image.",
        "What is this?",
        "What's in this image?",
        "What does the picture show?",
        "What can you see?",
        "Tell me what you see.",
        "Caption this picture.",
    ),
}
"""Phrasings by kind of question; ``anything`` can be asked about every picture."""

SMALL_TALK: Final[tuple[tuple[tuple[str, ...], str], ...]] = (
    (("Hello", "Hello!", "Hi", "Hi!", "Hey", "Hello there", "Good morning", "Good evening!"), "Hello!"),
    (
        ("Who are you?", "What are you?", "What is your name?", "Which model are you?", "Introduce yourself."),
        "I am Prism's demo model.",
    ),
    (
        ("What can you do?", "Help", "Help me", "What can I ask you?", "How can you help me?", "What do you know?"),
        "I can name colours, shapes, digits, words and photos, and count.",
    ),
    (("Thanks", "Thank you", "Thank you!", "Thanks!", "Great, thanks."), "You are welcome."),
    (("Bye", "Goodbye", "Goodbye!", "See you."), "Goodbye!"),
    (("How are you?", "How are you today?", "How do you do?"), "Fine, thank you."),
)
"""Messages without a picture and their answer."""

DEFAULT_SYSTEM: Final = "You are a helpful assistant."
SYSTEMS: Final = (
    "You are Prism's demo model.",
    "You are a helpful assistant. Answer briefly.",
    "Answer in one word.",
    "You look at pictures and answer questions about them.",
    "Be brief.",
    "You are a careful assistant that answers with a single word.",
    "You are an expert in image recognition.",
    "Answer the user's question about the picture.",
)
"""The system prompts that training uses besides Qwen's default."""

_AFTER: Final = (
    " Answer in one word.",
    " One word.",
    " Please answer briefly.",
    " Answer with a single word.",
    " Be brief.",
)
_BEFORE: Final = ("Please tell me: ", "Hi! ", "Question: ", "Look at the picture. ", "Can you tell me: ")


def ask(kind: str, rng: random.Random) -> str:
    """A random phrasing of a kind of question, typed in a random way."""
    return decorate(rng.choice(PHRASINGS[kind]), rng)


def decorate(question: str, rng: random.Random) -> str:
    """Varies how a question is typed: without its final mark, in lower case, or more politely; two thirds stay
    unchanged."""
    if rng.random() < 0.12:
        question = question.rstrip("?.!")
    if rng.random() < 0.12:
        question = question.lower()
    if rng.random() < 0.06:
        question = rng.choice(_BEFORE) + question
    if rng.random() < 0.06:
        question = question.rstrip("?.") + ", please" + ("?" if question.endswith("?") else ".")
    elif rng.random() < 0.08:
        question = question + rng.choice(_AFTER)
    return question


def ask_of(ordinal: str, kind: str, rng: random.Random) -> str:
    """A random phrasing of a question about the "first" or "second" of two pictures."""
    picture = rng.choice(("picture", "image", "photo" if kind == "photo" else "picture"))
    noun = rng.choice(_NOUNS[kind])
    forms: tuple[str, ...] = (
        f"What {noun} is in the {ordinal} {picture}?",
        f"Which {noun} is in the {ordinal} {picture}?",
        f"What is the {noun} in the {ordinal} {picture}?",
        f"Tell me the {noun} in the {ordinal} {picture}.",
        f"What {noun} does the {ordinal} {picture} show?",
        f"{ordinal.capitalize()} {picture}: what {noun} is it?",
    )
    if kind == "count":
        forms = (f"How many {noun} are in the {ordinal} {picture}?", f"Count the {noun} in the {ordinal} {picture}.")
    return decorate(rng.choice(forms), rng)


_NOUNS: Final = {
    "colour": ("colour", "color"),
    "shape": ("shape",),
    "count": ("shapes", "objects"),
    "digit": ("digit", "number"),
    "word": ("word",),
    "photo": ("subject", "thing"),
}
