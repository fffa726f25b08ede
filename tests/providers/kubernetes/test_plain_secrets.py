"""Which plain values are refused in a manifest, wherever they stand in it, and which are not."""

from __future__ import annotations

import base64
import contextlib
import json
import time
from types import SimpleNamespace
from typing import Any

import pytest

from nighttrain.providers.errors import ConfigurationError
from nighttrain.providers.kubernetes.job.checked import check_workload
from nighttrain.providers.kubernetes.job.plain_secrets import check_texts, known_forms
from nighttrain.providers.kubernetes.job.spec import WorkloadSpec
from nighttrain.providers.redaction import names_a_secret


@pytest.mark.parametrize(
    "name",
    [
        "MLFLOW_TRACKING_PASSWORD",
        "MLFLOW_TRACKING_TOKEN",
        "PASSWORD",
        "password",
        "dbPassword",
        "PGPASSWORD",
        "DB_PASSWD",
        "MYSQL_PWD",
        "SMTP_PASS",
        "GPG_PASSPHRASE",
        "HF_TOKEN",
        "AWS_SESSION_TOKEN",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_ACCESS_KEY_ID",
        "WANDB_API_KEY",
        "OPENAI_APIKEY",
        "SSH_PRIVATE_KEY",
        "AZURE_STORAGE_CONNECTION_STRING",
        "AZURE_STORAGE_KEY",
        "CLIENT_SECRET",
        "NEXT_AUTH_TOKEN",
        "GOOGLE_CREDENTIALS",
        "DB_PASSWORD_2",
    ],
)
def test_names_of_secrets(name: str) -> None:
    assert names_a_secret(name)


@pytest.mark.parametrize(
    "name",
    [
        "TOKENIZERS_PARALLELISM",
        "MAX_TOKENS",
        "MAX_TOKEN",
        "PAD_TOKEN",
        "LOSS_PER_TOKEN",
        "TOKEN_COUNT",
        "NUM_TOKENS",
        "MLFLOW_TRACKING_AUTH",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "SSL_KEY_PATH",
        "DB_PASSWORD_FILE",
        "PASSWORD_MIN_LENGTH",
        "OAUTH_TOKEN_URL",
        "SECRET_NAME",
        "SECRETARY",
        "use_secretary_features",
        "n_pass",
        "FORWARD_PASS",
        "PWD",
        "OLDPWD",
        "KEY",
        "PRIMARY_KEY",
        "MONKEY",
        "COMPASSWORDS",
        "学習率",
        "",
    ],
)
def test_names_that_are_about_something_else(name: str) -> None:
    assert not names_a_secret(name)


def refused(known: tuple[str, ...] = (), **given: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        check_workload(WorkloadSpec(**{"image": "train:1", "known_secrets": known, **given}))
    assert "Secret" in str(caught.value)
    return str(caught.value)


WITH_PASSWORD = [{"name": "DB_PASSWORD", "value": "hunter2"}]


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"env_vars": {"DB_PASSWORD": "hunter2"}}, "env_vars['DB_PASSWORD']"),
        ({"env_vars": {"DB_PASSWORD": 12345}}, "env_vars['DB_PASSWORD']"),
        ({"env_vars": WITH_PASSWORD}, "env_vars['DB_PASSWORD']"),
        (
            {"init_containers": [{"name": "fetch", "image": "i", "env": WITH_PASSWORD}]},
            "init_containers['fetch'].env['DB_PASSWORD']",
        ),
        (
            {
                "pod_template_dict": {
                    "spec": {
                        "containers": [
                            {"name": "main"},
                            {"name": "proxy", "image": "i", "env": WITH_PASSWORD},
                        ]
                    }
                }
            },
            "containers['proxy'].env['DB_PASSWORD']",
        ),
        (
            {"pod_template_dict": {"spec": {"containers": [{"name": "main", "env": WITH_PASSWORD}]}}},
            "env_vars['DB_PASSWORD']",
        ),
        (
            {"full_pod_spec": {"containers": [{"name": "main", "env": WITH_PASSWORD}]}},
            "env_vars['DB_PASSWORD']",
        ),
    ],
)
def test_wherever_a_variable_stands(given: dict[str, Any], field: str) -> None:
    message = refused(**given)
    assert field in message
    assert "hunter2" not in message
    assert "12345" not in message


@pytest.mark.parametrize(
    "value",
    [
        "postgresql://me:hunter2@db/x",
        "redis://:hunter2@cache:6379/0",
        "-----BEGIN RSA PRIVATE KEY-----\nhunter2",
        "AKIAIOSFODNN7EXAMPLE",
        "Bearer hunter2hunter2",
        "ghp_" + "a1" * 18,
        "glpat-" + "a1" * 10,
        "hf_" + "a1" * 17,
        "eyJhbGciOiJI.eyJzdWIiOiIx.c2lnbmF0dXJl",
        "DefaultEndpointsProtocol=https;AccountKey=" + "a1" * 20,
    ],
)
@pytest.mark.parametrize("place", ["env_vars", "arguments", "cmds"])
def test_values_that_look_like_one(value: str, place: str) -> None:
    if place != "env_vars" and value.startswith("Bearer"):
        value = "AKIAIOSFODNN7EXAMPLE"
    message = refused(**{place: {"SETTING": value} if place == "env_vars" else ["train", value]})
    assert value not in message
    assert "hunter2" not in message


PASSWORD = "hunter2xyz"
HEADER = {"name": "Authorization", "value": f"Bearer {PASSWORD}"}


def main(**fields: Any) -> dict[str, Any]:
    return {"full_pod_spec": {"containers": [{"name": "main", **fields}]}}


def executed(*command: str) -> dict[str, Any]:
    return {"exec": {"command": list(command)}}


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"cmds": ["env", f"MLFLOW_TRACKING_PASSWORD={PASSWORD}", "python"]}, "cmds"),
        ({"cmds": ["sh", "-c", f"export MLFLOW_TRACKING_PASSWORD={PASSWORD}; train"]}, "cmds"),
        ({"arguments": [f"--password={PASSWORD}"]}, "arguments"),
        ({"arguments": ["--password", PASSWORD]}, "arguments"),
        ({"arguments": ["--db-password", "letters"]}, "arguments"),
        ({"arguments": f"train --db-password={PASSWORD} --n 3"}, "arguments"),
        ({"cmds": ["curl", "-u", f"me:{PASSWORD}", "https://host"]}, "cmds"),
        ({"cmds": ["curl"], "arguments": ["--user", f"me:{PASSWORD}", "https://host"]}, "arguments"),
        ({"env_vars": {"DSN": f"host=h user=me password={PASSWORD}"}}, "env_vars['DSN']"),
        ({"env_vars": {"JDBC": f"jdbc:postgresql://h/db?user=me&password={PASSWORD}"}}, "env_vars['JDBC']"),
        ({"env_vars": {"JDBC": f"jdbc:sqlserver://h;user=me;password={PASSWORD}"}}, "env_vars['JDBC']"),
        ({"env_vars": {"ODBC": f"Driver=x;Server=h;Uid=me;Pwd={PASSWORD}"}}, "env_vars['ODBC']"),
        (
            {"env_vars": {"AIRFLOW_CONN_X": json.dumps({"conn_type": "x", "password": PASSWORD})}},
            "env_vars['AIRFLOW_CONN_X']",
        ),
        ({"env_vars": {"DB": json.dumps({"url": f"redis://:{PASSWORD}@h/0"})}}, "env_vars['DB']"),
        ({"env_vars": {"URL": f"https://h/x?token={PASSWORD}"}}, "env_vars['URL']"),
        *(
            ({"env_vars": {name: PASSWORD}}, f"env_vars['{name}']")
            for name in ("MLFLOW_PASS", "PASS", "DB_PW", "API_KEYS", "KAGGLE_KEY", "OPENAI_KEY")
        ),
        ({"annotations": {"team/password": PASSWORD}}, "annotations['team/password']"),
        ({"annotations": {"note": f"https://me:{PASSWORD}@h"}}, "annotations.note"),
        ({"labels": {"password": PASSWORD}}, "labels.password"),
        (
            {
                "pod_template_dict": {
                    "metadata": {"annotations": {"note": f"password={PASSWORD}"}},
                    "spec": {},
                }
            },
            "metadata.annotations.note",
        ),
        (
            main(livenessProbe=executed("curl", f"https://me:{PASSWORD}@h")),
            "containers['main'].livenessProbe.exec.command[1]",
        ),
        (
            main(livenessProbe={"httpGet": {"port": 80, "httpHeaders": [HEADER]}}),
            "containers['main'].livenessProbe.httpGet.httpHeaders['Authorization']",
        ),
        (
            main(lifecycle={"preStop": executed("sh", "-c", f"TOKEN={PASSWORD} bye")}),
            "containers['main'].lifecycle.preStop.exec.command[2]",
        ),
        (
            {"volumes": [{"name": "v", "csi": {"driver": "d", "volumeAttributes": {"password": PASSWORD}}}]},
            "volumes['v'].csi.volumeAttributes.password",
        ),
        (
            {"files": {"arguments.json": json.dumps({"db_password": PASSWORD}, indent=2)}},
            "files['arguments.json']",
        ),
        ({"files": {"train.py": f"login(password='{PASSWORD}')"}}, "files['train.py']"),
    ],
)
def test_whatever_gives_a_secret_its_value_wherever_it_stands(given: dict[str, Any], field: str) -> None:
    message = refused(**given)
    assert field in message
    assert PASSWORD not in message
    assert "secrets=[Secret('env'" in message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("GOOGLE_APPLICATION_CREDENTIALS", "/var/secrets/google/key.json"),
        ("USE_TOKEN_TYPE_IDS", "1"),
        ("TOKEN_BATCH", "4096"),
        ("NUM_PASSWORD_ATTEMPTS", "3"),
        ("TOKEN_CLASSIFICATION", "ner"),
        ("PASSWORD_COLUMN", "pw"),
        ("MLFLOW_SECRET", "mlflow-credentials"),
        ("VAULT_SECRET", "kv/data/x"),
        ("GIT_CREDENTIAL_HELPER", "store"),
        ("TARGET_TOKEN", "price"),
        ("HF_TOKEN", "***"),
        ("HF_TOKEN", "${TOKEN}"),
        ("DB_PASSWORD", "/run/secrets/db"),
    ],
)
def test_settings_are_no_secrets(name: str, value: str) -> None:
    check_workload(
        WorkloadSpec(image="train:1", env_vars={name: value}, arguments=[f"--{name.lower()}={value}"])
    )


CODE = """
def train(api_key=None, token: str = "", password: str | None = None):
    password = os.environ["DB_PASSWORD"]
    token = tokens[i]; api_key = api_key or read("api_key")
    connect(user=user, password=password, token=self.token)
    url = f"postgresql://{user}:{os.environ['DB_PASSWORD']}@host/db"
    print(getpass.getpass("Password: "), {"password": password, "token": None})
    parser.add_argument("--password", help="a password")
    special = dict(pad_token="<pad>", oov_token="OOV", mask_token="[MASK]")
    names = {"api_key": "OPENAI_API_KEY"}
"""


@pytest.mark.parametrize(
    "given",
    [
        {"files": {"train.py": CODE}},
        {"cmds": ["python", "-c", CODE]},
        {"cmds": ["sh", "-c", 'TOKEN=$(cat /t) PASSWORD="$PW" API_KEY=`key` train --token $TOKEN']},
        {"cmds": ["sh", "-c", "PASSWORD= train --password=${PASSWORD} --token-file /t"]},
        {"arguments": ["--password", "$(DB_PASSWORD)", "--user", "1000:1000"]},
        {"env_vars": {"DSN": "host=h user=me password=$(DB_PASSWORD) sslmode=require"}},
        {
            "annotations": {
                "note": "password: must have 8 characters",
                "image": "registry/secret-token:abcdef1",
            }
        },
        {"volumes": [{"name": "v", "secret": {"secretName": "mlflow-credentials2"}}]},
    ],
)
def test_code_and_references_go_in(given: dict[str, Any]) -> None:
    check_workload(WorkloadSpec(**{"image": "train:1", **given}))


@pytest.mark.parametrize("piece", ["$(", "${", "{a", "curl ", "uid=", "a://", "token=", "<", "x:", '{"'])
def test_looking_through_long_files_takes_linear_time(piece: str) -> None:
    started = time.perf_counter()
    with contextlib.suppress(ConfigurationError):
        check_texts({"data": piece * (400_000 // len(piece))}, "files")
    assert time.perf_counter() - started < 10  # minutes, were it quadratic


@pytest.mark.parametrize(
    "given",
    [
        {"env_vars": {"DB_PASSWORD": "s3"}},
        {"env_vars": {"ANYTHING": "s3"}},
        {"arguments": ["--with", "s3"]},
        {"arguments": ["--with=s3"]},
        {"cmds": ["s3"]},
    ],
)
def test_the_connections_own_credential_however_short(given: dict[str, Any]) -> None:
    refused(known_forms(["s3"]), **given)


@pytest.mark.parametrize(
    "form", ["s3cr3t/w0rd!", "s3cr3t%2Fw0rd%21", base64.b64encode(b"me:s3cr3t/w0rd!").decode()]
)
@pytest.mark.parametrize(
    "place",
    [
        lambda text: {"env_vars": {"SETTING": f"prefix-{text}"}},
        lambda text: {"arguments": ["-c", f"run --it {text}; done"]},
        lambda text: {"annotations": {"note": text}},
        lambda text: {"files": {"train.py": f"login({text!r})"}},
        lambda text: {
            "pod_template_dict": {
                "spec": {
                    "containers": [{"name": "main", "lifecycle": {"preStop": {"exec": {"command": [text]}}}}]
                }
            }
        },
    ],
)
def test_the_connections_own_credential_anywhere(form: str, place: Any) -> None:
    message = refused(known_forms(["s3cr3t/w0rd!"], "me"), **place(form))
    assert form not in message


@pytest.mark.parametrize(
    "given",
    [
        {"env_vars": {"MAX_TOKENS": "512", "TOKENIZERS_PARALLELISM": "false", "PAD_TOKEN": "<pad>"}},
        {"env_vars": {"ALLOW_EMPTY_PASSWORD": "yes", "USE_TOKEN": "true", "DB_PASSWORD": ""}},
        {"env_vars": {"DB_PASSWORD": "$(MLFLOW_TRACKING_PASSWORD)"}},
        {"env_vars": {"DB": "postgresql://$(DB_USER):$(DB_PASS)@db/x"}},
        {"env_vars": {"MLFLOW_S3_ENDPOINT_URL": "http://minio:9000", "REPO": "https://me@git/x"}},
        {"arguments": ["sh", "-c", "curl https://me:${TOKEN}@host/x http://h:80/a@b"]},
        {"arguments": ["print(f'postgresql://{user}:{password}@{host}/db')"]},
        {
            "env_vars": [
                {"name": "DB_PASSWORD", "valueFrom": {"secretKeyRef": {"name": "db", "key": "password"}}}
            ]
        },
        {"env_from": [{"secretRef": {"name": "db"}}]},
    ],
)
def test_what_is_no_secret_goes_in(given: dict[str, Any]) -> None:
    check_workload(WorkloadSpec(**{"image": "train:1", "known_secrets": ("mlflow",), **given}))


def test_an_airflow_secret_goes_in() -> None:
    secret = SimpleNamespace(deploy_type="env", deploy_target="DB_PASSWORD", secret="db", key="password")
    check_workload(WorkloadSpec(image="train:1", secrets=[secret]))


# Order of variables


def environment(spec: WorkloadSpec) -> list[tuple[str, str]]:
    container = check_workload(spec).pod_template()["spec"]["containers"][0]
    return [(each["name"], each.get("value", "")) for each in container["env"]]


OUT = {"name": "OUT", "value": "/o/$(MLFLOW_RUN_ID)"}
TEMPLATE = {"spec": {"containers": [{"name": "main", "env": [OUT]}]}}


@pytest.mark.parametrize(
    "given",
    [
        {"env_vars": {"OUT": "/o/$(MLFLOW_RUN_ID)"}},
        {"pod_template_dict": TEMPLATE},
        {"full_pod_spec": TEMPLATE["spec"]},
    ],
)
def test_our_variables_stand_before_those_that_refer_to_them(given: dict[str, Any]) -> None:
    spec = WorkloadSpec(image="train:1", own_env={"MLFLOW_RUN_ID": "abc"}, **given)
    assert environment(spec) == [("MLFLOW_RUN_ID", "abc"), ("OUT", "/o/$(MLFLOW_RUN_ID)")]


DB_PASS = SimpleNamespace(deploy_type="env", deploy_target="DB_PASS", secret="db", key="password")
SECRET_VARIABLE = {"name": "DB_PASS", "valueFrom": {"secretKeyRef": {"name": "db", "key": "password"}}}


@pytest.mark.parametrize(
    "given",
    [
        {"env_vars": {"DB": "postgresql://me:$(DB_PASS)@db/x"}},
        {"env_vars": {"DB": "postgresql://me:$(DB_PASS)@db/x", "DB_PASS": ""}},
    ],
)
def test_variables_of_secrets_stand_before_those_that_refer_to_them(given: dict[str, Any]) -> None:
    spec = WorkloadSpec(image="train:1", secrets=[DB_PASS], own_env={"MLFLOW_RUN_ID": "abc"}, **given)
    assert check_workload(spec).pod_template()["spec"]["containers"][0]["env"] == [
        {"name": "MLFLOW_RUN_ID", "value": "abc"},
        SECRET_VARIABLE,
        {"name": "DB", "value": "postgresql://me:$(DB_PASS)@db/x"},
    ]


def test_every_container_is_told_the_run_and_only_the_main_one_the_rest() -> None:
    spec = WorkloadSpec(
        full_pod_spec={
            "containers": [{"name": "main", "image": "i"}, {"name": "side", "image": "i", "env": [OUT]}],
            "initContainers": [{"name": "first", "image": "i"}],
        },
        own_env={"MLFLOW_RUN_ID": "abc", "MLFLOW_EXPERIMENT_ID": "7", "MLFLOW_TRACKING_URI": "http://m"},
    )
    pod = check_workload(spec).pod_template()["spec"]
    run = [{"name": "MLFLOW_RUN_ID", "value": "abc"}, {"name": "MLFLOW_EXPERIMENT_ID", "value": "7"}]
    main, side = pod["containers"]
    assert pod["initContainers"][0]["env"] == run
    assert side["env"] == [*run, OUT]
    assert main["env"] == [*run, {"name": "MLFLOW_TRACKING_URI", "value": "http://m"}]


def test_a_variable_that_the_user_gives_wins_and_keeps_its_place() -> None:
    given = {"FIRST": "1", "MLFLOW_RUN_ID": "mine", "OUT": "$(MLFLOW_RUN_ID)"}
    spec = WorkloadSpec(image="train:1", env_vars=given, own_env={"A": "a", "MLFLOW_RUN_ID": "abc"})
    assert environment(spec) == [("A", "a"), *given.items()]
