"""Reads one secret as a Flyte task does and prints it: flyte_task.py GROUP KEY [VERSION]."""

import sys

import flytekit

GROUP, KEY, VERSION = (sys.argv[1:] + [None])[:3]


@flytekit.task(secret_requests=[flytekit.Secret(group=GROUP, key=KEY, group_version=VERSION)])
def read_secret() -> str:
    return flytekit.current_context().secrets.get(GROUP, KEY, group_version=VERSION)


if __name__ == "__main__":
    print(read_secret(), end="")
