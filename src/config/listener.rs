//! Who may come in, and read what: `[[listener]]` and `[[policy]]`.

use std::path::PathBuf;

use super::load::{MODE, address, mode, path, role_arn, word};
use super::{Bind, DEFAULT_TOKEN_FILE, ListenerConfig, OpsConfig, PolicyConfig, TokenConfig};
use crate::document::{Entry, Section, Value};

/// The longest path of a Unix socket: what clients can name, by `sun_path` of unix(7) less its final NUL, and one byte to
/// spare.
const MAX_SOCKET_PATH: usize = 106;

const PATTERNS: &str = "a list of patterns such as \"team-a/*\"";

/// Takes one `[[listener]]`.
pub(super) fn listener(section: &Section<'_>) -> Option<ListenerConfig> {
    let unix = section.entry("unix", "the path of a socket, of at most 106 bytes", socket_path);
    let tcp = section.entry("tcp", "an address such as \"127.0.0.1:2773\"", address);
    let directory_mode = section.entry("directory_mode", MODE, mode);
    let mode = section.entry("mode", MODE, mode);
    let owner = section.entry("owner", "a user's name or number", word);
    let group = section.entry("group", "a group's name or number", word);
    let allow_uids = section.entry("allow_uids", "a list of user ids", ids);
    let token = section.private_entry("token", "\"none\"; else name a token_file", |value| {
        value.text().filter(|token| *token == "none").map(str::to_owned)
    });
    let token_file = section.entry("token_file", "the path of a file", path);
    let allowed_hosts = section.entry("allowed_hosts", "a list of host names", Value::texts);
    let allow_non_loopback = section.entry("allow_non_loopback", "true or false", Value::boolean);
    let allow_secrets = section.get("allow_secrets", PATTERNS, patterns);
    let accepted = "a list of ARNs of roles, \"arn:aws:iam::<12 digits>:role/<name>\"";
    let allow_roles = section.get("allow_roles", accepted, |value| value.list(role_arn));
    section.refuse_the_rest();
    if unix.is_none() {
        refuse(section, "mode", mode.as_ref(), "unix");
        refuse(section, "directory_mode", directory_mode.as_ref(), "unix");
        refuse(section, "owner", owner.as_ref(), "unix");
        refuse(section, "group", group.as_ref(), "unix");
        refuse(section, "allow_uids", allow_uids.as_ref(), "unix");
    }
    if tcp.is_none() {
        refuse(section, "token", token.as_ref(), "tcp");
        refuse(section, "token_file", token_file.as_ref(), "tcp");
        refuse(section, "allowed_hosts", allowed_hosts.as_ref(), "tcp");
        refuse(section, "allow_non_loopback", allow_non_loopback.as_ref(), "tcp");
    }
    let bind = match (unix, tcp) {
        (Some(path), None) => Bind::Unix {
            path: path.value,
            mode: mode.map_or(0o660, |mode| mode.value),
            directory_mode: directory_mode.map(|mode| mode.value),
            owner: owner.map(|owner| owner.value),
            group: group.map(|group| group.value),
            allow_uids: allow_uids.map(|uids| uids.value).unwrap_or_default(),
        },
        (None, Some(addr)) => {
            if let (Some(_), Some(file)) = (&token, &token_file) {
                section.contradicts("token_file", file, "the listener also says token = \"none\"");
            }
            let allow_non_loopback = allow_non_loopback.is_some_and(|allow| allow.value);
            if !addr.value.ip().is_loopback() && !allow_non_loopback {
                let what = "secrets would leave this host in clear text; accepted: a loopback address, \
                            or any other with allow_non_loopback = true";
                section.contradicts("tcp", &addr, what);
            }
            let token = match (token, token_file) {
                (Some(_), _) => TokenConfig::None,
                (None, Some(file)) => TokenConfig::File(file.value),
                (None, None) => TokenConfig::File(DEFAULT_TOKEN_FILE.into()),
            };
            let allowed_hosts = allowed_hosts.map(|hosts| hosts.value).unwrap_or_default();
            Bind::Tcp { addr: addr.value, token, allowed_hosts, allow_non_loopback }
        }
        (Some(_), Some(addr)) => {
            section.contradicts("tcp", &addr, "a listener has one of unix and tcp; write two listeners");
            return None;
        }
        (None, None) => {
            section.complain("a listener needs one of unix and tcp");
            return None;
        }
    };
    Some(ListenerConfig {
        bind,
        allow_secrets: allow_secrets.unwrap_or_default(),
        allow_roles: allow_roles.unwrap_or_default(),
    })
}

/// Takes one `[[policy]]`, which may name one of these listeners.
pub(super) fn policy(section: &Section<'_>, listeners: &[ListenerConfig]) -> Option<PolicyConfig> {
    let labels: Vec<String> = listeners.iter().map(ListenerConfig::label).collect();
    let accepted = format!("one of the listeners: {}", labels.join(", "));
    let listener = section.entry("listener", &accepted, |value| {
        value.text().filter(|label| labels.iter().any(|known| known == label)).map(str::to_owned)
    });
    let some_ids = |value: Value<'_>| ids(value).filter(|ids| !ids.is_empty());
    let uids = section.entry("uids", "a list of user ids, of one at least", some_ids);
    let gids = section.entry("gids", "a list of group ids, of one at least", some_ids);
    let allow_secrets = section.get("allow_secrets", PATTERNS, patterns);
    section.refuse_the_rest();
    if listener.as_ref().is_some_and(|listener| listener.value.starts_with("tcp:")) {
        let what = "nobody knows the user of a TCP connection; name a unix listener, or leave it out";
        for (key, ids) in [("uids", &uids), ("gids", &gids)] {
            if let Some(ids) = ids {
                section.contradicts(key, ids, what);
            }
        }
    }
    let Some(allow_secrets) = allow_secrets else {
        section.complain("a policy needs allow_secrets; without a pattern it would allow nothing");
        return None;
    };
    Some(PolicyConfig {
        listener: listener.map(|listener| listener.value),
        uids: uids.map(|uids| uids.value),
        gids: gids.map(|gids| gids.value),
        allow_secrets,
    })
}

/// Complains about a key of the other kind of listener.
fn refuse<T>(section: &Section<'_>, key: &str, given: Option<&Entry<T>>, kind: &str) {
    if let Some(entry) = given {
        section.contradicts(key, entry, &format!("only a {kind} listener has this"));
    }
}

/// No address may be listened on twice.
pub(super) fn check_addresses(root: &Section<'_>, listeners: &[ListenerConfig], ops: &OpsConfig) {
    let mut seen: Vec<String> = Vec::new();
    let of_listeners = listeners.iter().map(ListenerConfig::address);
    for address in of_listeners.chain(ops.tcp.map(|addr| addr.to_string())) {
        if seen.contains(&address) && !address.ends_with(":0") {
            root.complain(&format!(
                "{address} is configured twice; listeners and [ops] need an address each"
            ));
        }
        seen.push(address);
    }
}

fn ids(value: Value<'_>) -> Option<Vec<u32>> {
    value.list(|item| item.number().and_then(|id| u32::try_from(id).ok()))
}

/// Patterns of what can be a name or an ARN: none that could never match by a slip.
fn patterns(value: Value<'_>) -> Option<Vec<String>> {
    let is_visible =
        |pattern: &String| !pattern.is_empty() && pattern.bytes().all(|byte| byte.is_ascii_graphic());
    value.texts().filter(|patterns| !patterns.is_empty() && patterns.iter().all(is_visible))
}

/// A path in the file system; abstract sockets have no permissions and are refused.
pub(super) fn socket_path(value: Value<'_>) -> Option<PathBuf> {
    path(value).filter(|path| {
        let text = path.as_os_str().as_encoded_bytes();
        text.len() <= MAX_SOCKET_PATH && !text.starts_with(b"@") && path.file_name().is_some()
    })
}
