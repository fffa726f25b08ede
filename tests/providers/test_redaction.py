from __future__ import annotations

import time

import pytest

from nighttrain.providers.redaction import is_secret, redact


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://user:pw@db:5432/x", "postgresql://***@db:5432/x"),
        ("train --token abcdef --n 3", "train --token *** --n 3"),
        ("train --db-password 'a b' --n 3", "train --db-password *** --n 3"),
        ("MY_PASSWORD=hunter2, x=1", "MY_PASSWORD=***, x=1"),
        ('{"api_key": "abc def"}', '{"api_key": ***}'),
        ('{\\"password\\": \\"abc\\", \\"n\\": 3}', '{\\"password\\": ***, \\"n\\": 3}'),
        ('password="never closed', "password=***"),
        ("AWS_SECRET_ACCESS_KEY: abcdefgh12345", "AWS_SECRET_ACCESS_KEY: ***"),
        ("db.password = x", "db.password = ***"),
        ("could not log in: password=hunter22 rejected", "could not log in: password=*** rejected"),
        ("Authorization: Bearer abcdefghijkl", "Authorization: Bearer ***"),
        ("Authorization: Basic abcdefghijkl", "Authorization: Basic ***"),
        ("sent Basic dXNlcjpwdw==", "sent Basic ***"),
        ("AKIAABCDEFGHIJKLMNOP", "***"),
        ("-----BEGIN PRIVATE KEY-----\nabc\n-----END PRIVATE KEY-----", "***"),
    ],
)
def test_credentials_are_masked(text: str, shown: str) -> None:
    assert redact(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "max_tokens=512 tokenizer: bpe",
        "plain text with a key: 3 and a@b",
        "use_secretary_features=yes n_secret_shares=3 secret_sharing: shamir",
        "--num-tokens 4096 --tokenizer bpe-large --sort-key day --use-token --n 3",
        "token_type=word password_length: 12 n_pass=7 max_token=512",
        '{"pad_token": "<pad>", "eos_token": "</s>", "mask_token": "[MASK]", "unk_token": "unk"}',
        "tokens per second: x",
        "basic training of the classifier",
        "passed: yes, compass=north, author=someone, secretion: low",
        "has_password=True uses_secret: false secret=None",
        "bearer securities, asset class: bearer instruments",
        "password: must have 8 characters",
        "image: registry/secret-token:abcdef author/token:latest",
        "token=word, city --tokenizer-token bpe secret: sauce",
        "password=$(DB_PASSWORD) token=${TOKEN} password_file=/run/secrets/db secret=/run/secrets/db",
    ],
)
def test_words_that_only_look_alike_stay(text: str) -> None:
    assert redact(text) == text


SECRETS = """
    password db_password dbPassword DB-PASSWORD password2 password_old token api_token hf_token accessToken
    secret client.secret api_key apiKey APIKey apikey aws_secret_access_key private-key db_pass credentials
    clientsecret dbpassword MLFLOW_TRACKING_PASSWORD Authorization token_value
"""
NO_SECRETS = """
    n_pass max_pass bypass compass tokens max_tokens tokenizer token_count tokenType use_secretary_features
    password_length secret_sharing secretary pad_token eos_token image_token key sort_key primary_key
    api_key_header password_file 学習率 木の数 passthrough author keys attention_key secrets_found
"""


@pytest.mark.parametrize("name", SECRETS.split())
def test_names_of_secrets(name: str) -> None:
    assert is_secret(name, "hunter2")
    assert not is_secret(name, True)
    assert not is_secret(name, None)


@pytest.mark.parametrize("name", NO_SECRETS.split())
def test_names_that_are_no_secrets(name: str) -> None:
    assert not is_secret(name, "hunter2")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("padding_token", "pad"), ("oov_token", "OOV"), ("sos_token", "sos"), ("blank_token", "_")),
        *(
            ("separator_token", ";"),
            ("label_token", "Y"),
            ("target_token", "price"),
            ("access_key", "flight"),
        ),
        *(("credentials", "aws"), ("pwd", "/work"), ("token", "bpe"), ("secret", "alpha"), ("user_pass", "")),
        *(("mlflow_secret", "mlflow-credentials"), ("mlflow_secret", "mlflow-credentials-v2")),
        ("label_token", "number_of_delays_in_the_week_before"),
        *(("credentials", "/var/secrets/key.json"), ("vault_secret", "kv/data/x"), ("first_pass", "a1b2c3")),
    ],
)
def test_values_that_say_that_they_are_no_secrets(name: str, value: str) -> None:
    assert not is_secret(name, value)
    assert redact(f"{name}={value}") == f"{name}={value}"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("target_token", "a8f3k2m9"), ("padding_token_secret", "a8f3k2m9"), ("access_key", "a8f3k2m9")),
        *(("aws_access_key", "flight"), ("client_secret", "alpha"), ("hf_token", "x"), ("db_pass", "word")),
        *(
            ("openai_key", "sk-a8f3k2m9"),
            ("api_keys", "a8f3k2m9"),
            ("db_pw", "a8f3k2m9"),
            ("pass", "a8f3k2m9"),
        ),
        *(("db_password", "$ecret"), ("hf_token", "$ecret1")),
        *(("secret", "Zm9v/YmFy+L2Jhcg1"), ("secret", "/bPxRfiCYEXAMPLEKEYa1"), ("token", "a" * 30)),
    ],
)
def test_values_that_may_be_secrets_and_look_like_them(name: str, value: str) -> None:
    assert is_secret(name, value)
    assert redact(f"{name}={value}") == f"{name}=***"


def test_a_small_number_is_a_setting_except_for_a_password() -> None:
    assert not is_secret("max_token", 512)
    assert not is_secret("secret", "1e-3")
    assert is_secret("password", 1234)


def test_known_secrets_are_masked_wherever_they_occur() -> None:
    assert redact("x=hunter22!", ["hunter22", None, "", "x"]) == "x=***!"


@pytest.mark.parametrize(
    "piece", ["x", "a-", "://", "token ", "x@", "--", "'", "basic ", "a.", "=", 'x\\"', "x:"]
)
def test_redacting_long_text_takes_linear_time(piece: str) -> None:
    started = time.perf_counter()
    redact(piece * (400_000 // len(piece)))
    assert time.perf_counter() - started < 10  # minutes, when it was quadratic
