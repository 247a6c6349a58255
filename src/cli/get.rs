//! `smcached get`: one secret on standard output, byte for byte.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;

use bytes::Bytes;
use clap::Args;
use hyper::http::response::Parts;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;

use super::{Exit, complain, small_runtime};
use crate::config::{ClientAddress, Environment};
use crate::net::{ClientError, Endpoint, fetch};

/// What needs no escape within a name.
const NAME: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b':');

/// Within a key, a slash is part of the name.
const KEY: &AsciiSet = &NAME.remove(b'/');

/// `<group>/<key>` in one word is split, and unescaped, as in a URL.
const WORD: &AsciiSet = &KEY.remove(b'%');

/// Print one secret, exactly as it is.
///
/// Exit codes: 0 printed; 2 wrong usage or a malformed name; 3 no such secret, version or field;
/// 4 not allowed; 5 the daemon or AWS cannot be reached or is busy: try again later; 1 anything else.
#[derive(Debug, Args)]
pub(super) struct GetArgs {
    /// The secret's group: one of the configuration, or an ARN up to `:secret:`. Or `<group>/<key>` in one word
    #[arg(value_name = "GROUP")]
    group: String,
    /// The secret's key within the group
    #[arg(value_name = "KEY")]
    key: Option<String>,
    /// Only this field of a JSON secret: a top-level key, or a JSON Pointer that starts with /
    #[arg(long)]
    field: Option<String>,
    /// The version with this staging label, such as AWSPREVIOUS
    #[arg(long, value_name = "STAGE")]
    version_stage: Option<String>,
    /// The version with this id
    #[arg(long, value_name = "ID")]
    version_id: Option<String>,
    /// The daemon's Unix socket [default: `$SMCACHED_ADDRESS`, else /run/smcached/smcached.sock]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
}

/// The members of a problem (RFC 9457) that are shown.
#[derive(Debug, Deserialize)]
struct Problem {
    detail: String,
    code: String,
}

pub(super) fn run(args: &GetArgs, environment: &Environment) -> Exit {
    match ask(args, environment) {
        Err(exit) => exit,
        Ok(Err(error)) => {
            complain(&error);
            Exit::Unavailable
        }
        Ok(Ok((head, body))) if head.status.is_success() => print(&body),
        Ok(Ok((head, body))) => {
            match serde_json::from_slice::<Problem>(&body) {
                Ok(problem) => complain(&format!("{} ({})", problem.detail, problem.code)),
                Err(_) => complain(&format!("the daemon answers with status {}", head.status)),
            }
            exit_of(head.status.as_u16())
        }
    }
}

fn ask(args: &GetArgs, environment: &Environment) -> Result<Result<(Parts, Bytes), ClientError>, Exit> {
    let usage = |error: &dyn std::fmt::Display| {
        complain(&error);
        Exit::Usage
    };
    let endpoint = match ClientAddress::find(args.socket.as_deref(), environment).map_err(|e| usage(&e))? {
        ClientAddress::Unix(path) => Endpoint::Unix(path),
        ClientAddress::Tcp(address) => Endpoint::Tcp(address),
    };
    let token = environment.read_token().map_err(|error| usage(&error))?;
    let mut headers = Vec::new();
    if let (Endpoint::Tcp(_), Some(token)) = (&endpoint, &token) {
        headers.push(("x-aws-parameters-secrets-token", token.as_str()));
    }
    Ok(small_runtime()?.block_on(fetch(&endpoint, &args.target(), &headers)))
}

impl GetArgs {
    /// The request's path and query.
    fn target(&self) -> String {
        let mut target = match &self.key {
            Some(key) => {
                let group = utf8_percent_encode(&self.group, NAME);
                format!("/secret/{group}/{}", utf8_percent_encode(key, KEY))
            }
            None => format!("/secret/{}", utf8_percent_encode(&self.group, WORD)),
        };
        let parameters = [
            ("field", &self.field),
            ("version_stage", &self.version_stage),
            ("version_id", &self.version_id),
        ];
        let given = parameters.iter().filter_map(|(name, value)| Some((name, value.as_deref()?)));
        for (index, (name, value)) in given.enumerate() {
            let separator = if index == 0 { '?' } else { '&' };
            target.push(separator);
            target.extend([name, "="]);
            target.extend(utf8_percent_encode(value, NON_ALPHANUMERIC));
        }
        target
    }
}

/// Writes the secret as it is; on a terminal, where nobody counts bytes, a newline follows.
fn print(secret: &[u8]) -> Exit {
    let mut output = io::stdout().lock();
    let newline: &[u8] = if output.is_terminal() { b"\n" } else { b"" };
    let written =
        output.write_all(secret).and_then(|()| output.write_all(newline)).and_then(|()| output.flush());
    match written {
        Ok(()) => Exit::Success,
        Err(error) => {
            complain(&format!("cannot write the secret: {error}"));
            Exit::Failure
        }
    }
}

fn exit_of(status: u16) -> Exit {
    match status {
        400 | 405 | 413 | 414 | 431 => Exit::Usage,
        401 | 403 => Exit::Denied,
        404 => Exit::NotFound,
        429 | 502..=504 => Exit::Unavailable,
        _ => Exit::Failure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(group: &str, key: Option<&str>) -> GetArgs {
        GetArgs {
            group: group.to_owned(),
            key: key.map(str::to_owned),
            field: None,
            version_stage: None,
            version_id: None,
            socket: None,
        }
    }

    #[test]
    fn a_group_and_a_key_are_names_and_one_word_is_a_path() {
        assert_eq!(args("a/b", Some("c/d")).target(), "/secret/a%2Fb/c/d");
        assert_eq!(args("a/b%2Fc", None).target(), "/secret/a/b%2Fc");
        assert_eq!(args("100%", Some("a b")).target(), "/secret/100%25/a%20b");
        let arn = "arn:aws:secretsmanager:us-west-2:123456789012:secret:";
        assert_eq!(args(arn, Some("/Name-AbCdEf")).target(), format!("/secret/{arn}//Name-AbCdEf"));
    }

    #[test]
    fn options_become_parameters() {
        let asked =
            GetArgs { field: Some("/a b".into()), version_id: Some("v1".into()), ..args("g", Some("k")) };
        assert_eq!(asked.target(), "/secret/g/k?field=%2Fa%20b&version_id=v1");
    }
}
