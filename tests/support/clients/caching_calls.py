"""Reads through AWS's caching library: argv[1] and the output are as for client_probe_boto3.py."""

from aws_secretsmanager_caching import SecretCache

from boto3_calls import run


def main():
    cache = SecretCache()
    run(lambda operation, arguments: {"value": getattr(cache, operation)(**arguments)})


if __name__ == "__main__":
    main()
